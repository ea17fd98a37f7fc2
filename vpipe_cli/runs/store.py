"""The run folders of this machine: made, found, listed. A run's truth is its folder; there is no other record."""

from __future__ import annotations

import os
import re
import secrets
import time
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from vpipe_cli.onhost.exposed import MEND, exposed
from worker.errors import PreflightError, RunNotFound
from worker.spec.files import RunFiles, append_event, read_events

ID = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})-\d{8}-\d{6}-[0-9a-f]{4}")
ASKED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Run:
    """One run: its id ``NAME-YYYYMMDD-HHMMSS-XXXX`` (UTC) and what its first event says."""

    id: str
    folder: Path
    started: float = field(compare=False)
    cwd: str = field(compare=False)
    engine: str = field(compare=False)

    @property
    def files(self) -> RunFiles:
        """The names of its files."""
        return RunFiles(self.folder)

    @property
    def name(self) -> str:
        """The name that cluster.yml gave the job."""
        match = ID.fullmatch(self.id)
        return match[1] if match else self.id


def home() -> Path:
    """Where runs are kept: ``$VPIPE_HOME``, or ``vpipe`` in the platform's data folder."""
    if given := os.environ.get("VPIPE_HOME"):
        return Path(given).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data) if os.path.isabs(data) else Path.home() / ".local" / "share") / "vpipe"


def kept(inside: str) -> Path:
    """What is or will be in home under this name. Raises PreflightError if others could put theirs in its place."""
    path = home() / inside
    if problem := exposed(str(path)):
        raise PreflightError(f"others could change {path}: {problem}", MEND)
    return path


def made(inside: str) -> Path:
    """A folder in home, made for this user alone if it is not there. Raises OSError; PreflightError as ``kept``."""
    folder = kept(inside)
    home().mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def folder_of(run: str) -> Path:
    """The folder of a run, there or not."""
    return home() / "runs" / run


def new_id(name: str) -> str:
    """An id that no run has."""
    while True:
        run = f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        if not folder_of(run).exists():
            return run


def create(run: str, engine: str) -> Run:
    """Make the folder of a new run and write its first event. Raises PreflightError if that cannot be done."""
    folder, cwd, now = folder_of(run), os.getcwd(), time.time()
    first = {"time": now, "event": "state", "state": "planning", "attempt": 1, "cwd": cwd, "engine": engine}
    try:
        made("runs")
        folder.mkdir()
        folder.chmod(0o700)
        append_event(RunFiles(folder).events, first)
    except OSError as error:
        raise PreflightError(f"cannot make the run's folder: {error}", "VPIPE_HOME names another place") from error
    return Run(run, folder, now, cwd, engine)


def list_runs() -> list[Run]:
    """All runs, newest first. Folders that are no runs are passed over."""
    try:
        names = os.listdir(home() / "runs")
    except FileNotFoundError:
        return []
    found = (_open(name) for name in names)
    return sorted((run for run in found if run), key=lambda run: (run.started, run.id), reverse=True)


def _open(name: str) -> Run | None:
    folder = folder_of(name)
    if not ID.fullmatch(name) or folder.is_symlink() or not folder.is_dir():
        return None
    try:
        first = next(read_events(RunFiles(folder).events), None)
    except OSError:
        return None
    if first is None or not isinstance(first.get("time"), (int, float)):
        return None
    return Run(name, folder, float(first["time"]), str(first.get("cwd", "")), str(first.get("engine", "local")))


def find(asked: str | None = None) -> Run:
    """The run meant: by id, by name (the newest of that name), by the beginning of one id only.

    None means the newest run started from this folder, or else the newest of all.

    Raises:
        RunNotFound: naming the nearest ones.
    """
    runs = list_runs()
    if not runs:
        raise RunNotFound(f"there is no run yet in {home()}", "`vpipe launch` starts one")
    if asked is None:
        return next((run for run in runs if run.cwd == os.getcwd()), runs[0])
    if not ASKED.fullmatch(asked):
        raise RunNotFound(f"{asked[:80]!r} cannot be a run", "`vpipe ps` lists all runs")
    by_prefix = [run for run in runs if run.id.startswith(asked)]
    exact = [run for run in by_prefix if run.id == asked] or [run for run in by_prefix if run.name == asked]
    if exact or len(by_prefix) == 1:
        return (exact or by_prefix)[0]
    raise _not_found(asked, runs, by_prefix)


def _not_found(asked: str, runs: list[Run], by_prefix: list[Run]) -> RunNotFound:
    if by_prefix:
        ids = ", ".join(run.id for run in by_prefix[:5])
        return RunNotFound(f"{len(by_prefix)} runs begin with {asked}", f"the newest are {ids}")
    names = dict.fromkeys(name for run in runs for name in (run.name, run.id))
    near = get_close_matches(asked, names, n=3, cutoff=0.5) or [run.id for run in runs[:3]]
    return RunNotFound(f"no run {asked}", f"near it: {', '.join(near)}; `vpipe ps` lists all runs")
