"""A specification, placed: the exact processes a run will be, as a value that is printed, stored and executed."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from vpipe_cli.machines import Slot
from worker.planner import make_plan
from worker.schedule.job import prove
from worker.spec.cluster import ClusterSpec, Section
from worker.spec.files import RunFiles
from worker.spec.job import Job, Placement

KEPT = frozenset(
    {"HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PYTHONPATH", "TMPDIR", "TZ", "USER"}
    | {"VPIPE_CACHE", "XDG_CACHE_HOME"}
)
"""Variables of the user's environment that ranks get, beside LC_*. No other one: secrets stay where they are."""


class RankLaunch(Section):
    """One process: what is executed where, and its files."""

    rank: int
    stage: int
    host: str
    device: str = Field(description="as cluster.yml names it; the rank itself sees its GPU as the only one")
    argv: list[str]
    env: dict[str, str] = Field(description="all of it, but VPIPE_RUN, VPIPE_NONCE, VPIPE_STORE that hostd adds")
    cwd: str
    log: str
    error: str
    ready: str
    exit: str


class Launch(Section):
    """launch.json: all that hostd needs, which knows no other file. Paths are absolute."""

    version: int = 1
    run: str
    folder: str
    attempt: int
    attempt_folder: str
    grace: float = Field(5.0, description="seconds between SIGTERM and SIGKILL")
    lock: str
    stop: str
    events: str
    hostd_log: str
    ranks: list[RankLaunch]
    job: Job


@dataclass(frozen=True)
class Surroundings:
    """What a launch takes from the machine and the shell it is resolved in."""

    python: str
    cores: int
    environ: Mapping[str, str]
    folder: Path

    @classmethod
    def here(cls) -> Surroundings:
        """This interpreter, the cores this process may use, its environment, its folder."""
        return cls(sys.executable, len(os.sched_getaffinity(0)), dict(os.environ), Path.cwd())


def resolve(spec: ClusterSpec, run: str, files: RunFiles, slots: Sequence[Slot], here: Surroundings) -> Launch:
    """The launch of ``spec`` as run ``run``: its ranks in slot order. Touches nothing.

    Args:
        spec: as ``vpipe_cli.config.load`` gives it: with stages and replicas that fit the slots.
    Raises:
        ScheduleError: the schedule cannot run on these stages.
    """
    threads = max(1, here.cores // len(slots)) if spec.run.threads == "auto" else spec.run.threads
    plan = make_plan(spec, len(slots))
    prove(spec, plan)
    places = [
        Placement(rank=rank, stage=plan.stages_of(rank)[0], host=slot.host, device=_seen(slot.device), threads=threads)
        for rank, slot in enumerate(slots)
    ]
    job = Job(run=run, spec=spec, plan=plan, ranks=places)
    attempt = 1
    return Launch(
        run=run,
        folder=str(files.folder),
        attempt=attempt,
        attempt_folder=str(files.attempt(attempt)),
        lock=str(files.lock),
        stop=str(files.stop),
        events=str(files.events),
        hostd_log=str(files.hostd_log),
        ranks=[_rank(place, slot, files, attempt, here) for place, slot in zip(places, slots, strict=True)],
        job=job,
    )


def _rank(place: Placement, slot: Slot, files: RunFiles, attempt: int, here: Surroundings) -> RankLaunch:
    rank = place.rank
    argv = [here.python, "-m", "worker", "--job", str(files.job), "--rank", str(rank), "--attempt", str(attempt)]
    return RankLaunch(
        rank=rank,
        stage=place.stage,
        host=slot.host,
        device=slot.device,
        argv=argv,
        env=_environment(place.threads, slot.device, here),
        cwd=str(files.folder),
        log=str(files.log(attempt, rank)),
        error=str(files.error(attempt, rank)),
        ready=str(files.ready(attempt, rank)),
        exit=str(files.exit(attempt, rank)),
    )


def _environment(threads: int, device: str, here: Surroundings) -> dict[str, str]:
    env = {name: value for name, value in here.environ.items() if name in KEPT or name.startswith("LC_")}
    if paths := env.get("PYTHONPATH"):  # ranks run in another folder than the shell this was typed in
        env["PYTHONPATH"] = os.pathsep.join(str(here.folder / path) for path in paths.split(os.pathsep))
    env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    env |= {"GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    if device.startswith("cuda:"):
        env["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cuda:")
    return dict(sorted(env.items()))


def _seen(device: str) -> str:
    """The device as the rank addresses it: of its GPU it sees nothing but that one."""
    return "cuda:0" if device.startswith("cuda:") else device


def describe(launch: Launch) -> str:
    """The launch as text for people: plan, places, and each rank's environment and command."""
    plan = launch.job.plan
    text = [f"run     {launch.run}", f"folder  {launch.folder}", f"plan    {plan.reason}"]
    for rank, place in zip(launch.ranks, launch.job.ranks, strict=True):
        layers, ratio = plan.layers_of(rank.stage), plan.recompute_ratio[rank.stage]
        what = f"layers {layers[0]}-{layers[-1]} ({len(layers)}), recompute_ratio {ratio:g}, threads {place.threads}"
        text += ["", f"rank {rank.rank} on {rank.host} {rank.device}: stage {rank.stage}, {what}"]
        text += [f"  {shlex.quote(f'{name}={value}')}" for name, value in rank.env.items()]
        text.append(f"  {shlex.join(rank.argv)}")
    return "\n".join(text)
