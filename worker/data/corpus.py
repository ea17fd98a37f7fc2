"""The text to train on: which files it is made of, a digest of them, and their documents.

``Corpus`` has a document a file. Others override ``documents``: a line of jsonl, a line of each of two files that
translate each other, a record that the datasets package saved.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from worker.data.bad_records import BadRecords
from worker.errors import DataError
from worker.spec.cluster import DataSpec
from worker.spec.data import ParallelSpec

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
    settings: str = ""
    bad: BadRecords = field(default_factory=BadRecords)

    def digest(self) -> str:
        """SHA-256 over every relative path and content, and whatever else decides on the documents; as hex."""
        total = hashlib.sha256(f"{self.strict}{self.settings}".encode())
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


class JsonLines(Corpus):
    """A record a line; ``settings`` is the field that holds the text."""

    def documents(self) -> Iterator[str]:
        """The text of each record. Raises DataError naming file and line where there is none, or leaves that out."""
        for path in self.files:
            for number, line in enumerate(_read(path).split(b"\n"), start=1):
                if line.strip():
                    where = f"{path}:{number}"
                    try:
                        record = json.loads(line)
                    except ValueError as error:
                        self.bad.found(where, f"is no JSON ({error})")
                        continue
                    if text := self._text(record, where):
                        yield text

    def _text(self, record: Any, where: str) -> str:
        text = record.get(self.settings) if isinstance(record, dict) else None
        if isinstance(text, str):
            return text
        if not isinstance(record, dict):
            self.bad.found(where, f"is a {type(record).__name__}, not an object")
        else:
            problem = f"is a {type(text).__name__}, not text" if self.settings in record else "is missing"
            self.bad.found(where, f"{self.settings} {problem}; data.text_key names the field")
        return ""


class Saved(Corpus):
    """A dataset that the datasets package saved to a folder; ``settings`` is the field that holds the text."""

    def documents(self) -> Iterator[str]:
        """The text of each record of each split. Raises DataError where the package or the field is missing."""
        try:
            import datasets
        except ImportError:
            raise DataError("source hf needs the datasets package", "pip install 'vpipe[hf]'") from None
        try:
            found = datasets.load_from_disk(str(self.root))
        except Exception as error:
            raise DataError(f"{self.root} is no folder that datasets saved: {error}") from None
        for split in found.values() if isinstance(found, dict) else [found]:
            if self.settings not in split.column_names:
                names = ", ".join(split.column_names)
                raise DataError(f"{self.root} has no field {self.settings}", f"data.text_key is one of {names}")
            for number, record in enumerate(split.select_columns(self.settings)):
                text = record[self.settings]
                if not isinstance(text, str):
                    problem = f"{self.settings} is a {type(text).__name__}, not text"
                    self.bad.found(f"{self.root}: record {number}", problem)
                elif text:
                    yield text


class Parallel(Corpus):
    """Two files; line i of the first, then line i of the second."""

    def documents(self) -> Iterator[str]:
        """Raises DataError where one file has more lines."""
        one, other = (self._lines(path) for path in self.files)
        for number, pair in enumerate(zip_longest(one, other), start=1):
            if None in pair:
                path = self.files[pair.index(None)]
                raise DataError(
                    f"{path} ends before line {number}, which the other file has",
                    "line i of one file must translate line i of the other",
                )
            yield from pair

    def _lines(self, path: Path) -> Iterator[str]:
        raw = _read(path)
        lines = raw.split(b"\n")
        for number, line in enumerate(lines[:-1] if raw.endswith(b"\n") or not raw else lines, start=1):
            try:
                yield line.decode().strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}:{error.start + 1} is not UTF-8 text") from None


def find_parallel(spec: ParallelSpec) -> Corpus:
    """Both files of parallel text, without reading them. Raises DataError where one is no file."""
    files = (Path(spec.path).expanduser(), Path(spec.target_path).expanduser())
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} is not a file", "data.path and data.target_path each name one file of lines")
    # Relative paths within one root keep the digest the same wherever the files lie.
    root = Path(os.path.commonpath([path.parent.resolve() for path in files]))
    return Parallel("parallel", root, tuple(path.resolve() for path in files), strict=True)


def check_shards(paths: Sequence[Path]) -> None:
    """Files called ``*-00003-of-00010*`` must all be there. Raises DataError naming those that are not."""
    groups: dict[tuple[str, int, str], set[int]] = {}
    for path in paths:
        if match := SHARD.fullmatch(path.name):
            groups.setdefault((match[1], int(match[3]), match[4]), set()).add(int(match[2]))
    for (stem, count, suffix), there in groups.items():
        first = 0 if 0 in there or count not in there else 1
        if missing := sorted(set(range(first, first + count)) - there):
            some = ", ".join(map(str, missing[:5])) + (" ..." if len(missing) > 5 else "")
            raise DataError(f"of the {count} shards {stem}*{suffix} in {paths[0].parent}, {some} is missing")


SHARD = re.compile(r"(.*?)(\d+)-of-0*(\d+)(.*)")


def find(spec: DataSpec) -> Corpus:
    """The corpus that ``data.source`` means, without reading it.

    Raises:
        DataError: there is no such file or folder, or no text file in it.
    """
    if spec.path is None:
        # Some tests of the standard library are in other encodings on purpose, so this one is not strict.
        root = Path(sysconfig.get_path("stdlib"))
        corpus = Corpus(spec.source, root, tuple(files_below(root, ".py")), strict=False)
    else:
        kind, suffix = {"jsonl": (JsonLines, ".jsonl"), "hf": (Saved, "")}.get(spec.source, (Corpus, ""))
        corpus = _users_text(Path(spec.path).expanduser(), spec, kind, suffix)
    if not corpus.files:
        raise DataError(f"no text files below {corpus.root}", "point data.path at a text file or a folder of them")
    check_shards(corpus.files)
    return corpus


def _users_text(path: Path, spec: DataSpec, kind: type[Corpus], suffix: str) -> Corpus:
    settings = "" if kind is Corpus else spec.text_key
    bad = BadRecords(spec.on_bad_record)
    if path.is_file():
        return kind(spec.source, path.parent, (path,), True, settings, bad)
    if path.is_dir():
        return kind(spec.source, path, tuple(files_below(path, suffix)), True, settings, bad)
    problem = "is neither a regular file nor a folder" if path.exists() else "does not exist"
    raise DataError(f"data.path {path} {problem}", "point data.path at a text file or a folder of them")


def files_below(root: Path, suffix: str) -> list[Path]:
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
