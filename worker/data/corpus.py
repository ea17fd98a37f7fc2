"""The text to train on: which files it is made of, a digest of them, and their documents."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.errors import DataError
from worker.spec.cluster import DataSpec

FOREIGN = frozenset({"site-packages", "dist-packages", "__pycache__"})
"""Folders inside the standard library's that are not of it."""


@dataclass(frozen=True)
class Corpus:
    """Text files below ``root`` in the order of their relative paths; each is one document.

    ``strict`` makes a file that is not UTF-8 an error; otherwise it is left out.
    """

    name: str
    root: Path
    files: tuple[Path, ...]
    strict: bool

    def digest(self) -> str:
        """SHA-256 over every relative path and content, as hex."""
        total = hashlib.sha256(str(self.strict).encode())
        for path in self.files:
            content = _read(path)
            total.update(os.fsencode(path.relative_to(self.root)) + b"\0" + str(len(content)).encode() + b"\0")
            total.update(content)
        return total.hexdigest()

    def documents(self) -> Iterator[str]:
        """The text of each file.

        Raises:
            DataError: a file cannot be read, or is not UTF-8 and must be.
        """
        for path in self.files:
            try:
                yield _read(path).decode("utf-8")
            except UnicodeDecodeError as error:
                if self.strict:
                    raise DataError(
                        f"{path} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}",
                        "convert the file, or take it out of data.path",
                    ) from None


def find(spec: DataSpec) -> Corpus:
    """The corpus that ``data.source`` means, without reading it.

    Raises:
        DataError: there is no such file or folder, or no text file in it.
    """
    if spec.path is None:
        # Some tests of the standard library are in other encodings on purpose, so this one is not strict.
        root = Path(sysconfig.get_path("stdlib"))
        corpus = Corpus(spec.source, root, tuple(_files_below(root, ".py")), strict=False)
    else:
        corpus = _users_text(Path(spec.path).expanduser())
    if not corpus.files:
        raise DataError(f"no text files below {corpus.root}", "point data.path at a text file or a folder of them")
    return corpus


def _users_text(path: Path) -> Corpus:
    if path.is_file():
        return Corpus("text", path.parent, (path,), strict=True)
    if path.is_dir():
        return Corpus("text", path, tuple(_files_below(path, "")), strict=True)
    problem = "is neither a regular file nor a folder" if path.exists() else "does not exist"
    raise DataError(f"data.path {path} {problem}", "point data.path at a text file or a folder of them")


def _files_below(root: Path, suffix: str) -> list[Path]:
    """Regular files with that suffix, sorted; hidden ones and links to folders are passed over."""

    def fail(error: OSError) -> None:
        raise DataError(f"cannot list {error.filename}: {error.strerror}") from None

    found: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=fail):
        subfolders[:] = [name for name in subfolders if name not in FOREIGN and not name.startswith(".")]
        paths = (Path(folder, name) for name in names if name.endswith(suffix) and not name.startswith("."))
        found += [path for path in paths if path.is_file()]
    return sorted(found, key=lambda path: os.fsencode(path.relative_to(root)))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
