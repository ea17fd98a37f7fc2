"""Removes runs that have ended: on their hosts first, then here, so that what could not be reached is not forgotten."""

from __future__ import annotations

from vpipe_cli.onhost import send
from vpipe_cli.runs.places import hosts_of, ssh_of
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.store import Run
from vpipe_cli.transport.connect import connect
from vpipe_cli.transport.local import LocalTransport
from worker.errors import PreflightError, UnreachableError, UsageError
from worker.spec.records import FINAL

LIMIT = 60.0


def check(run: Run) -> None:
    """Refuse a run that has not ended. Raises UsageError, or UnreachableError where nobody can say whether it has."""
    state = standing(run).state
    if state == "unknown":
        hint = "try again when its hosts answer; --local removes what is on this machine"
        raise UnreachableError(f"run {run.id} may still be going on: its hosts do not answer", hint)
    if state not in FINAL:
        raise UsageError(f"run {run.id} is {state}", f"`vpipe stop {run.id}` ends it first")


def remove(run: Run, local: bool = False) -> list[str]:
    """Remove the run's folders. Returns the hosts where it was removed, ``localhost`` last.

    Args:
        local: only the folder on this machine.
    Raises:
        UnreachableError: a host does not answer; the folder here is then still there.
        PreflightError: a folder could not be removed; UsageError where a process of the run still lives.
    """
    removed = []
    folders = {} if local else hosts_of(run)
    if folders:
        with connect(list(folders), ssh_of(run)) as hosts:
            for host, folder in folders.items():
                answer = send.ask(hosts[host], "remove", {"folders": [folder]}, timeout=LIMIT)[folder]
                _expect(run, host, answer)
                removed.append(host)
    folder = str(run.folder)
    _expect(run, "localhost", send.ask(LocalTransport(), "remove", {"folders": [folder]}, timeout=LIMIT)[folder])
    return [*removed, "localhost"]


def _expect(run: Run, host: str, answer: str) -> None:
    if answer == "live":
        hint = f"`vpipe stop {run.id}` ends it; `vpipe ps --orphans` shows what was left behind"
        raise UsageError(f"run {run.id}: a process of it still lives on {host}", hint)
    if answer not in ("removed", "absent"):
        raise PreflightError(f"run {run.id}: cannot be removed on {host}: {answer}")
