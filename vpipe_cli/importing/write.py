"""Sections of cluster.yml with a remark on some of their lines -> its text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vpipe_cli import yamltree
from vpipe_cli.importing.note import Note
from vpipe_cli.sanitize import clean

WIDTH = 118


@dataclass(frozen=True)
class Line:
    """A value, and why it is that one."""

    value: object
    why: str = ""


Section = Mapping[str, Line]
Sections = Mapping[str, Line | Section]


def text(sections: Sections, source: str, notes: Sequence[Note] = ()) -> str:
    """The file: what it came from and what is missing as comments, then the sections in their order."""
    head = [f"# Made by `vpipe import` from {source}.", *_missing(notes)]
    body = [line for key, what in sections.items() for line in _section(key, what)]
    return "\n".join([line for part in head for line in _wrapped(part)] + body) + "\n"


def _missing(notes: Sequence[Note]) -> Iterator[str]:
    kinds = (("left out", "Not carried over, and why:"), ("changed", "Carried over, but not the same:"))
    for kind, title in kinds:
        found = [note for note in notes if note.kind == kind]
        if found:
            yield from ("#", f"# {title}", *(f"# - {note.key}: {note.why}" for note in found))


def _section(key: str, what: Line | Section) -> Iterator[str]:
    if isinstance(what, Line):
        yield from ("", *_line(key, what, ""))
    elif what:
        yield from ("", f"{key}:")
        for name, line in what.items():
            yield from _line(name, line, "  ")


def _line(key: str, line: Line, indent: str) -> Iterator[str]:
    values = yamltree.dump({key: line.value}).rstrip("\n").split("\n")
    if line.why and len(values) == 1 and len(indent + values[0]) + len(line.why) + 4 <= WIDTH:
        yield f"{indent}{values[0]}  # {_plain(line.why)}"
        return
    if line.why:
        yield from _wrapped(f"{indent}# {line.why}")
    yield from (indent + value for value in values)


def _wrapped(comment: str) -> Iterator[str]:
    """A comment in lines of bearable length. What came from a file cannot end one."""
    indent = comment[: len(comment) - len(comment.lstrip())]
    hang = indent + ("#   " if comment.lstrip().startswith("# -") else "# ")
    here, words = "", _plain(comment.strip()).split(" ")
    for word in words:
        if here and len(here) + len(word) + 1 > WIDTH:
            yield here
            here = hang + word
        else:
            here = f"{here} {word}" if here else indent + word
    yield here


def _plain(comment: str) -> str:
    """One line without anything that would end it."""
    return " ".join(clean(" ".join(comment.split())).split())
