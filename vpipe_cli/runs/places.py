"""Where the ranks of a run are: each rank's host, command, environment and folder; and the way to those hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vpipe_cli import placing
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.store import Run
from vpipe_cli.slurm.node import NodeTransport
from vpipe_cli.transport.base import Transport
from vpipe_cli.transport.connect import HERE, connect
from vpipe_cli.transport.local import LocalTransport
from worker.errors import NotFinished, UsageError
from worker.spec.job import Job
from worker.spec.records import FINAL
from worker.spec.ssh import SshSpec

ALLOCATION = "allocation.json"
"""Which allocation has a run on Slurm; hostd writes it."""
WORKER = ["-m", "worker"]


@dataclass(frozen=True)
class Place:
    """One rank. Paths are those of its host; ``here`` says that this machine is that host.

    ``container`` is the beginning of a command that runs in its container: empty where it has none.
    """

    rank: int
    stage: int
    host: str
    here: bool
    folder: str
    cwd: str
    container: list[str]
    env: dict[str, str]
    inherit: list[str]


def places(run: Run) -> list[Place]:
    """The place of every rank of a run. Raises NotFinished if it has not got so far, UsageError if it has no more."""
    try:
        launch = json.loads(run.files.launch.read_bytes())
        folders: dict[str, str] = json.loads(run.files.hosts.read_bytes()) if run.files.hosts.exists() else {}
    except (FileNotFoundError, ValueError):
        raise NotFinished(f"run {run.id} has no ranks yet", f"`vpipe status {run.id}` says how it stands") from None
    if run.engine == "slurm":
        _must_have_nodes(run)
        folder = next(iter(folders.values()), str(run.folder))
        folders = dict.fromkeys((rank["host"] for rank in launch["ranks"]), folder)
    if run.engine != "local" and not folders:
        raise NotFinished(f"run {run.id} has not come to its hosts", f"`vpipe status {run.id}` says how it stands")
    return [_place(run, rank, folders.get(rank["host"])) for rank in launch["ranks"]]


def _must_have_nodes(run: Run) -> None:
    """A run has nodes of Slurm as long as it runs."""
    state = standing(run).state
    if state in FINAL:
        raise UsageError(f"run {run.id} has ended ({state}): its nodes belong to others now")
    if state not in ("starting", "running", "restarting"):
        raise NotFinished(f"run {run.id} is {state} and has no nodes", f"`vpipe status {run.id}` says how it stands")


def job_of(run: Run) -> str:
    """The job of Slurm that has the nodes of a run. Raises NotFinished where none has begun.

    Each task of an array has a number of its own, which its allocation knows. One that is elsewhere is of no array.
    """
    file = run.files.slurm if run.files.hosts.exists() else run.folder / ALLOCATION
    try:
        return str(json.loads(file.read_bytes())["job"])
    except (OSError, ValueError, KeyError):
        raise NotFinished(f"run {run.id} has no nodes yet", f"`vpipe status {run.id}` says how it stands") from None


def choose(found: Sequence[Place], rank: int) -> Place:
    """The place of one rank. Raises UsageError if there is no such."""
    for place in found:
        if place.rank == rank:
            return place
    raise UsageError(f"--rank {rank}: no such rank", f"this run has ranks 0 to {found[-1].rank}")


def hosts_of(run: Run) -> dict[str, str]:
    """The run's folder on each of its other hosts; none for a run on this machine alone."""
    try:
        found: dict[str, str] = json.loads(run.files.hosts.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def ssh_of(run: Run) -> SshSpec:
    """How the hosts of a run are reached."""
    try:
        return Job.model_validate_json(run.files.job.read_bytes()).spec.ssh
    except (OSError, ValueError):
        return SshSpec()


@contextmanager
def reached(run: Run, hosts: Sequence[str]) -> Iterator[Mapping[str, Transport]]:
    """Connections to some hosts of a run. Raises UnreachableError."""
    if run.engine == "slurm":
        job, login = job_of(run), list(hosts_of(run))
        with connect(login or [HERE], ssh_of(run)) as found:
            yield {host: NodeTransport(found[login[0] if login else HERE], job, host) for host in hosts}
        return
    if not hosts_of(run):
        yield {host: LocalTransport() for host in hosts}
        return
    with connect(hosts, ssh_of(run)) as found:
        yield found


def _place(run: Run, rank: Mapping[str, Any], folder: str | None) -> Place:
    root = folder.removesuffix(f"/runs/{run.id}") if folder else ""
    text = json.dumps(rank).replace(placing.ROOT, json.dumps(root)[1:-1]) if folder else json.dumps(rank)
    expanded = json.loads(text)
    argv = expanded["argv"]
    begin = next((at for at in range(1, len(argv)) if argv[at : at + 2] == WORKER), 1)
    return Place(
        rank=rank["rank"],
        stage=rank["stage"],
        host=rank["host"],
        here=folder is None,
        folder=folder or str(run.folder),
        cwd=expanded["cwd"],
        container=argv[: begin - 1],
        env=expanded["env"],
        inherit=expanded.get("inherit", []),
    )
