"""Runs on the test Slurm whose ranks are small programs: no torch, no planner."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.rig import wait_for, with_token
from vpipe_cli import machines
from vpipe_cli.engines import ENGINES
from vpipe_cli.launch import Launch, Surroundings, resolve
from vpipe_cli.placing import Shipped
from vpipe_cli.runs.state import Standing, standing
from vpipe_cli.runs.store import Run, create, new_id
from vpipe_cli.shipped import code
from worker.spec.cluster import ClusterSpec
from worker.spec.files import read_events
from worker.spec.records import FINAL

ENGINE = ENGINES["slurm"]
READY = """import os, sys, time
folder = f"{os.environ['HERE']}/attempt-{os.environ['VPIPE_ATTEMPT']}"
rank = os.environ["VPIPE_RANK"]
first = os.environ["VPIPE_ATTEMPT"] == "1"
print(f"rank {rank} on {os.environ['VPIPE_HOST']}", flush=True)
open(f"{folder}/rank-{rank}.ready", "w").close()
"""
SLEEP = READY + "time.sleep(600)"
ONCE = READY + "time.sleep(600 if first else 0)"
"""Sleeps in the first attempt and ends well in the next."""
LEAVES = (
    READY + "while first and not os.path.exists(os.environ['HERE'] + '/preempt'): time.sleep(0.1)\nsys.exit(75 * first)"
)
"""Leaves when it is asked to, as a rank does that has saved."""


def launch_of(
    run: Run,
    programs: Sequence[str],
    slurm: dict[str, object],
    settings: dict[str, object],
    ssh_config: str | None = None,
) -> Launch:
    """One rank on each node; each runs its program."""
    given = {"nodes": len(programs), **slurm}
    spec = ClusterSpec.model_validate(
        {
            "machines": [f"node[1-{len(programs)}]:cpu"],
            "engine": "slurm",
            "slurm": given,
            "ssh": {"config": ssh_config},
            "python": sys.executable,
            "pipeline": {"stages": len(programs)},
            "run": settings,
        }
    )
    slots, shipped = machines.slots(spec.machines), Shipped(code().digest)
    launch = resolve(spec, run.id, run.files, slots, Surroundings.here(), shipped=shipped)
    ranks = [
        rank.model_copy(update={"argv": [sys.executable, "-S", "-c", program], "env": {"HERE": rank.cwd}})
        for rank, program in zip(launch.ranks, programs, strict=True)
    ]
    return launch.model_copy(update={"ranks": ranks, "grace": 2.0})


def start(
    program: str, *, slurm: dict[str, object] | None = None, ssh_config: str | None = None, **settings: object
) -> Run:
    """A run on two nodes that was queued; ``slurm`` are values of that section, ``settings`` of ``run``."""
    run = create(new_id("gang"), "slurm")
    ENGINE.start(run, launch_of(run, [program] * 2, slurm or {}, settings, ssh_config), "")
    return run


def running(run: Run, attempt: int = 1) -> Run:
    """The run, once that attempt of it runs."""
    wait_for(lambda: (now := standing(run)).state == "running" and now.attempt == attempt, 90)
    return run


def end(run: Run) -> Standing:
    """Where the run stands once it has ended."""
    wait_for(lambda: standing(run).state in FINAL, 120)
    return standing(run)


def states(run: Run) -> list[str]:
    """The states it went through, without repetitions."""
    said = [event["state"] for event in read_events(run.files.events) if event["event"] == "state"]
    return [state for index, state in enumerate(said) if index == 0 or said[index - 1] != state]


def job(run: Run) -> str:
    """Its number in Slurm."""
    return str(json.loads(run.files.slurm.read_bytes())["job"])


def rank_on(run: Run, node: str) -> int:
    """The process of the rank on a node."""
    return next(pid for pid in with_token(run.id) if f"VPIPE_HOST={node}" in _environ(pid))


def gone(run: Run) -> bool:
    """Whether no process of the run is left, once a moment has passed."""
    wait_for(lambda: not with_token(run.id), 30)
    return True


def _environ(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except OSError:
        return []


def kill(pid: int, number: int) -> None:
    """Send a signal to a process of a run."""
    os.kill(pid, number)
