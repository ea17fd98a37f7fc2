"""The sweep folders of this machine: made, found, listed, and what their events say. A sweep's truth is its folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vpipe_cli.runs.store import home, made
from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.records import Definition, Row
from worker.errors import PreflightError, RunNotFound
from worker.spec.files import read_events, write_atomic

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Said:
    """What a sweep's events say: of each trial the run it was given last and how it ended; and of the controller."""

    runs: dict[str, str] = field(default_factory=dict)
    lanes: dict[str, int] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    over: str = ""

    def open(self) -> dict[str, str]:
        """The runs of trials whose end was not written down."""
        return {identity: run for identity, run in self.runs.items() if identity not in self.rows}

    def is_done(self, identity: str) -> bool:
        """Whether the trial need not run any more."""
        row = self.rows.get(identity)
        return row is not None and row.is_settled


def folder_of(sweep: str) -> Path:
    """The folder of a sweep, there or not."""
    return home() / "sweeps" / sweep


def id_of(name: str, *typed: Any) -> str:
    """The id of what was typed: the same command for the same file is the same sweep, whatever the file says now."""
    return f"{name}-{hashlib.sha256(json.dumps(typed).encode()).hexdigest()[:8]}"


def write(definition: Definition, cluster: str) -> SweepFiles:
    """Make the folder or find it, and say in it what is to be run. Raises PreflightError if that cannot be done."""
    files = SweepFiles(folder_of(definition.sweep))
    try:
        made("sweeps")
        files.folder.mkdir(mode=0o700, exist_ok=True)
        files.stop.unlink(missing_ok=True)
        write_atomic(files.cluster, cluster)
        write_atomic(files.definition, definition.model_dump_json() + "\n")
    except OSError as error:
        raise PreflightError(f"cannot write the sweep's folder: {error}", "VPIPE_HOME names another place") from error
    return files


def read(files: SweepFiles) -> Definition | None:
    """What is to be run; None where nothing is, or it was written by another version."""
    try:
        return Definition.model_validate_json(files.definition.read_bytes())
    except (OSError, ValidationError):
        return None


def said(files: SweepFiles) -> Said:
    """What the events say so far."""
    runs: dict[str, str] = {}
    lanes: dict[str, int] = {}
    rows: dict[str, Row] = {}
    over = ""
    for event in read_events(files.events):
        match event.get("event"):
            case "begin":
                over = ""
            case "start":
                runs[event["trial"]], lanes[event["trial"]] = event["run"], event["lane"]
                rows.pop(event["trial"], None)
            case "end":
                row = Row.model_validate(event["row"])
                rows[row.identity] = row
            case "over":
                over = str(event["why"])
    return Said(runs, lanes, rows, over)


def is_alive(files: SweepFiles) -> bool:
    """Whether a controller runs it."""
    try:
        lock = os.open(files.lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def list_sweeps() -> Iterator[Definition]:
    """All sweeps, newest first."""
    try:
        names = [name for name in os.listdir(home() / "sweeps") if ID.fullmatch(name)]
    except FileNotFoundError:
        return
    found = (read(SweepFiles(folder_of(name))) for name in names)
    yield from sorted((each for each in found if each), key=lambda each: each.created, reverse=True)


def find(asked: str | None = None) -> Definition:
    """The sweep meant: by id, by the beginning of one id only, by name (its newest); None: the newest of this folder.

    Raises:
        RunNotFound: naming the nearest ones.
    """
    sweeps = list(list_sweeps())
    if not sweeps:
        raise RunNotFound(f"there is no sweep yet in {home()}", "`vpipe sweep KEY=V1,V2` starts one")
    if asked is None:
        return next((each for each in sweeps if each.cwd == os.getcwd()), sweeps[0])
    exact = [each for each in sweeps if each.sweep == asked] or [each for each in sweeps if each.name == asked]
    begins = [each for each in sweeps if each.sweep.startswith(asked)]
    if exact or len(begins) == 1:
        return (exact or begins)[0]
    ids = [each.sweep for each in begins or sweeps]
    near = ids[:5] if begins else get_close_matches(asked, ids, n=3, cutoff=0.5) or ids[:3]
    what = f"{len(begins)} sweeps begin with {asked}" if begins else f"no sweep {asked[:80]!r}"
    raise RunNotFound(what, f"near it: {', '.join(near)}")


def finished_elsewhere(definition: Definition) -> dict[str, Row]:
    """Rows of trials that another sweep of this home has finished."""
    wanted = {trial.identity for trial in definition.trials}
    found: dict[str, Row] = {}
    for other in list_sweeps():
        if other.sweep == definition.sweep:
            continue
        for identity, row in said(SweepFiles(folder_of(other.sweep))).rows.items():
            if identity in wanted and row.is_settled and identity not in found:
                found[identity] = row.model_copy(update={"reused": row.reused or other.sweep})
    return found
