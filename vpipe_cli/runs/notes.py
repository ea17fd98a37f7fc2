"""Notes of a run: what a person wants to remember of it, kept in its folder."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vpipe_cli.runs.store import Run
from worker.errors import UsageError
from worker.spec.files import append_event, read_events

LONGEST = 10_000


@dataclass(frozen=True)
class Note:
    """One note. ``time`` is Unix time."""

    time: float
    text: str


def add(run: Run, text: str) -> Note:
    """Keep a note with the run. Raises UsageError if there is nothing in it, or far too much."""
    text = text.strip()
    if not 0 < len(text) <= LONGEST:
        raise UsageError(f"a note has 1 to {LONGEST} characters; this one has {len(text)}")
    note = Note(time.time(), text)
    append_event(run.files.notes, {"time": note.time, "event": "note", "text": note.text})
    return note


def notes(run: Run) -> list[Note]:
    """The run's notes, oldest first."""
    return [Note(event["time"], event["text"]) for event in read_events(run.files.notes) if event["event"] == "note"]
