"""What `vpipe import` has to say: where the file is, and what it does not hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vpipe_cli.importing.note import Note
from vpipe_cli.sanitize import clean

TITLES = {
    "left out": "left out, with what it asked for:",
    "changed": "carried over, but not the same:",
    "not needed": "not needed:",
}


def lines(path: Path, notes: Sequence[Note]) -> Iterator[str]:
    """For people."""
    for kind, title in TITLES.items():
        found = [note for note in notes if note.kind == kind]
        if found:
            yield title
            yield from (f"  {clean(str(note))}" for note in found)
    yield f"wrote {clean(str(path))}; look at it with: vpipe config show {clean(str(path))}"


def document(path: Path, notes: Sequence[Note]) -> dict[str, Any]:
    """For programs."""
    return {"schema": 1, "file": str(path), "notes": [vars(note) for note in notes]}
