"""A run on real hosts whose ranks are small programs: no torch, no planner; and who of it is still alive anywhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.rig import wait_for, with_token
from tests.testbed.host import Host
from tests.testbed.network import Testbed
from vpipe_cli import machines
from vpipe_cli.engines import ENGINES, bring_logs
from vpipe_cli.launch import Launch, Surroundings, resolve
from vpipe_cli.placing import Shipped
from vpipe_cli.runs.state import Standing, standing
from vpipe_cli.runs.store import Run, create, new_id
from vpipe_cli.shipped import code
from worker.spec.cluster import ClusterSpec
from worker.spec.files import read_events
from worker.spec.records import FINAL
from worker.spec.ssh import SshSpec

ENGINE = ENGINES["ssh"]
READY = """import os, sys, time
folder = f"{os.environ['HERE']}/attempt-{os.environ['VPIPE_ATTEMPT']}"
rank = os.environ["VPIPE_RANK"]
print(f"rank {rank} on {os.environ['VPIPE_HOST']}", flush=True)
open(f"{folder}/rank-{rank}.ready", "w").close()
"""
SLEEP = READY + "time.sleep(600)"


def launch_of(config: Path, run: Run, hosts: Sequence[str], programs: Sequence[str], **settings: object) -> Launch:
    """One rank on each host; each runs its program.

    Args:
        config: the ssh_config of a testbed.
    """
    spec = ClusterSpec.model_validate(
        {
            "machines": [f"{host}:cpu" for host in hosts],
            "engine": "ssh",
            "python": sys.executable,
            "pipeline": {"stages": len(hosts)},
            "run": settings,
        }
    ).model_copy(update={"ssh": SshSpec(config=str(config))})
    slots, shipped = machines.slots(spec.machines), Shipped(code().digest)
    launch = resolve(spec, run.id, run.files, slots, Surroundings.here(), shipped=shipped)
    ranks = [
        rank.model_copy(update={"argv": [sys.executable, "-S", "-c", program], "env": {"HERE": rank.cwd}})
        for rank, program in zip(launch.ranks, programs, strict=True)
    ]
    return launch.model_copy(update={"ranks": ranks})


def start(testbed: Testbed, hosts: list[Host], *programs: str, **settings: object) -> Run:
    """A run that was launched."""
    return begin(testbed.ssh_config, [host.name for host in hosts], programs, **settings)


def begin(config: Path, hosts: Sequence[str], programs: Sequence[str], **settings: object) -> Run:
    """The same for hosts by name."""
    run = create(new_id("gang"), "ssh")
    given = list(programs) if len(programs) > 1 else list(programs or [SLEEP]) * len(hosts)
    ENGINE.start(run, launch_of(config, run, hosts, given, **settings), "")
    return run


def running(run: Run) -> Run:
    """The run, once it says that it runs."""
    wait_for(lambda: standing(run).state == "running")
    return run


def end(run: Run, seconds: float = 40.0) -> Standing:
    """Where the run stands once it has ended."""
    wait_for(lambda: standing(run).state in FINAL, seconds)
    return standing(run)


def alive(run: Run) -> list[int]:
    """Processes with the run's token on any host: they are all processes of this machine."""
    return with_token(run.id)


def hostds(run: Run) -> list[int]:
    """The hostds of a run, their guards included, wherever they are."""
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _runs_hostd(pid, run)]


def hostd_of(host: Host, run: Run) -> int:
    """The one that has a guard over it."""
    found = [pid for pid in hostds(run) if pid in host.pids()]
    return next(pid for pid in found if _parent(pid) in found)


def rank_of(host: Host, run: Run) -> int:
    """A rank's process on a host."""
    return next(pid for pid in alive(run) if pid in host.pids())


def seconds_until_gone(run: Run, limit: float = 30.0) -> float:
    """Seconds from now until no process of the run is left anywhere."""
    began = time.monotonic()
    wait_for(lambda: not alive(run), limit)
    return time.monotonic() - began


def states(run: Run) -> list[str]:
    """The states it went through."""
    return [event["state"] for event in read_events(run.files.events) if event["event"] == "state"]


def text(run: Run, rank: int, attempt: int = 1) -> str:
    """What a rank printed, as the client has it."""
    bring_logs(run, 10.0)
    lines = run.files.log(attempt, rank).read_text().splitlines()
    return "\n".join(line.split(" ", 2)[2] for line in lines)


def _runs_hostd(pid: int, run: Run) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(word.endswith(b"worker/hostd") for word in words) and any(run.id.encode() in word for word in words)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
