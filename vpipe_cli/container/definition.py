"""What an image is built from, as a value: its key changes when anything does that would change the image."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vpipe_cli.container.store import digest
from worker.errors import ImageError, UsageError
from worker.spec.container import argument_problem

PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
SECTION = re.compile(r"%(\w+)(.*)")
LOCAL = ("localimage", "oci-archive", "docker-archive")


@dataclass(frozen=True)
class Definition:
    """A .def file with the values for its ``{{ NAME }}``s, or an image of a registry in its place."""

    source: str
    text: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where relative paths of the definition begin."""
        return Path(self.source).parent if self.text else Path()

    @property
    def values(self) -> dict[str, str]:
        """The values of all names: those given, over the definition's own."""
        return {**_defaults(self.text), **self.arguments}

    def inputs(self) -> list[Path]:
        """Files and folders of this machine that become part of the image."""
        text = PLACEHOLDER.sub(lambda match: self.values.get(match[1], ""), self.text)
        return [self.folder / os.path.expanduser(name) for name in _inputs(text)]

    def key(self, runtime: str) -> str:
        """sha256 over the definition, the values, the content of all inputs, and who builds."""
        taken = hashlib.sha256(repr((self.text or self.source, sorted(self.values.items()), runtime)).encode())
        for path in self.inputs():
            for entry in _entries(path):
                taken.update(repr(entry).encode())
        return taken.hexdigest()


def read(path: Path, arguments: Mapping[str, str]) -> Definition:
    """A definition from its file.

    Raises:
        UsageError: an argument is malformed, or the definition has no such name.
        ImageError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for name, value in arguments.items():
        if problem := argument_problem(name, value):
            raise UsageError(f"build argument: {problem}")
        if name not in PLACEHOLDER.findall(text):
            known = ", ".join(dict.fromkeys(PLACEHOLDER.findall(text))) or "none"
            raise UsageError(f"{path} has no {{{{ {name} }}}}", f"the names in it: {known}")
    return Definition(str(path.absolute()), text, dict(arguments))


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Each line with the section it is in; the header's is empty. Comments are left out."""
    section = ""
    for line in text.splitlines():
        stripped = line.strip()
        if match := SECTION.fullmatch(stripped):
            section = match[1]
        elif stripped and not stripped.startswith("#"):
            yield section, stripped


def _defaults(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for section, line in _sections(text) if section == "arguments")
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def _inputs(text: str) -> Iterator[str]:
    """The local base image and the sources of %files, in order."""
    header = dict(_header(line) for section, line in _sections(text) if not section)
    if header.get("bootstrap") in LOCAL and "from" in header:
        yield header["from"]
    for section, line in _sections(text):
        if section == "files":
            yield line.split()[0].strip("\"'")


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


def _entries(path: Path) -> Iterator[tuple[str, int, str]]:
    """Name, permissions and content of everything below a path. Raises ImageError if something cannot be read."""
    if "*" in path.name:
        for match in sorted(path.parent.glob(path.name)):
            yield from _entries(match)
        return
    try:
        if path.is_symlink():
            yield str(path), 0, os.readlink(path)
        if not path.exists():
            raise FileNotFoundError(2, "there is no such file")
        yield from _tree(path)
    except OSError as error:
        raise ImageError(f"the image needs {path}: {error.strerror}") from None


def _tree(path: Path) -> Iterator[tuple[str, int, str]]:
    if path.is_file():
        yield path.name, path.stat().st_mode, digest(path)
        return
    for top, folders, names in os.walk(path):
        folders.sort()
        for name in sorted([*names, *folders]):
            file = Path(top, name)
            found = file.lstat()
            content = os.readlink(file) if file.is_symlink() else digest(file) if file.is_file() else ""
            yield str(file.relative_to(path)), found.st_mode, content
