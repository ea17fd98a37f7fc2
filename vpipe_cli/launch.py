"""A specification, placed: the exact processes a run will be, as a value that is printed, stored and executed."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from vpipe_cli import outline, placing, profiles
from vpipe_cli.machines import Slot
from worker.planner import make_plan
from worker.schedule.job import prove
from worker.spec.cluster import ClusterSpec, Section
from worker.spec.files import RunFiles
from worker.spec.job import Job, Placement, Plan


class RankLaunch(Section):
    """One process: what is executed where, and its files."""

    rank: int
    stage: int
    host: str
    device: str = Field(description="as cluster.yml names it; the rank itself sees its GPU as the only one")
    argv: list[str]
    env: dict[str, str] = Field(description="hostd adds VPIPE_*, and on several hosts the network interface")
    inherit: list[str] = Field(default_factory=list, description="variables taken over from hostd's own environment")
    env_prefix: str = Field("", description="what the container's runtime wants before names that go inside")
    cwd: str
    log: str
    error: str
    ready: str
    exit: str
    progress: str
    stacks: str


class Launch(Section):
    """launch.json: all that hostd needs, which knows no other file.

    Paths are absolute; on other hosts they begin with ``~/.vpipe``, which stands for $VPIPE_HOME where that is set.
    There each host gets its ``slice_of`` this.
    """

    version: int = 1
    run: str
    folder: str
    attempt: int
    attempt_folder: str
    restarts: int = Field(0, description="attempts more, each after one that failed")
    stall_timeout: float = Field(description="seconds without progress of any rank until the attempt is ended")
    stall_floor: float | None = Field(None, description="to which steps may lower stall_timeout; null: not at all")
    start_timeout: float = Field(description="seconds for all ranks to be ready")
    head: str = Field("", description="the host whose hostd decides; empty where there is no other")
    grace: float = Field(5.0, description="seconds between SIGTERM and SIGKILL")
    log_limit: int = Field(0, description="bytes of a rank's log that are kept; 0: all of it")
    lock: str
    stop: str
    events: str
    hostd_log: str
    code: str = Field("", description="digest of the code that other hosts are sent")
    image: str = Field("", description="digest of the image that they are sent")
    ranks: list[RankLaunch]
    job: Job


@dataclass(frozen=True)
class Surroundings:
    """What a launch takes from the machine and the shell it is resolved in; ``inside`` is for a container here."""

    python: str
    cores: int
    environ: Mapping[str, str]
    folder: Path
    inside: placing.Sources | None = None

    @classmethod
    def here(cls) -> Surroundings:
        """This interpreter, the cores this process may use, its environment, its folder."""
        return cls(sys.executable, len(os.sched_getaffinity(0)), dict(os.environ), Path.cwd())


def resolve(
    spec: ClusterSpec,
    run: str,
    files: RunFiles,
    slots: Sequence[Slot],
    here: Surroundings,
    attempt: int = 1,
    shipped: placing.Shipped | None = None,
) -> Launch:
    """The launch of ``spec`` as run ``run``: its ranks in slot order. Touches nothing.

    Args:
        spec: as ``vpipe_cli.config.load`` gives it: with stages and replicas that fit the slots.
        files: those of the run on this machine.
        attempt: the number of the first attempt it makes.
        shipped: what other hosts are sent; None where nothing is.
    Raises:
        ScheduleError: the schedule cannot run on these stages.
    """
    threads = _threads(spec, len(slots), here.cores)
    plan = make_plan(spec, len(slots), outline.layer_flops(spec), profiles.for_launch(spec, slots))
    prove(spec, plan)
    places = [
        Placement(rank=rank, stage=plan.stages_of(rank)[0], host=slot.host, device=_seen(slot.device), threads=threads)
        for rank, slot in enumerate(slots)
    ]
    there = files if shipped is None else placing.remote_files(run)
    return Launch(
        run=run,
        folder=str(files.folder),
        attempt=attempt,
        attempt_folder=str(there.attempt(attempt)),
        restarts=spec.run.max_restarts,
        stall_timeout=spec.run.stall_timeout,
        stall_floor=spec.run.stall_floor,
        start_timeout=spec.run.start_timeout,
        log_limit=spec.run.log_limit << 20,
        head="" if shipped is None else slots[0].host,
        lock=str(there.lock),
        stop=str(there.stop),
        events=str(there.events),
        hostd_log=str(there.hostd_log),
        code=shipped.code if shipped else "",
        image=shipped.image if shipped else "",
        ranks=[
            _rank(place, slot, there, attempt, _process(spec, run, place, slot, there, attempt, here, shipped))
            for place, slot in zip(places, slots, strict=True)
        ],
        job=Job(run=run, spec=spec, plan=plan, ranks=places),
    )


def _threads(spec: ClusterSpec, ranks: int, cores: int) -> int:
    """Threads per rank. Of other hosts this machine knows nothing, so that ``auto`` means one there."""
    if spec.run.threads != "auto":
        return spec.run.threads
    if spec.engine == "slurm":
        return spec.slurm.cpus_per_rank
    return max(1, cores // ranks) if spec.engine == "local" else 1


def _process(
    spec: ClusterSpec,
    run: str,
    place: Placement,
    slot: Slot,
    files: RunFiles,
    attempt: int,
    here: Surroundings,
    shipped: placing.Shipped | None,
) -> placing.Process:
    if shipped is None:
        shell = placing.Here(here.python, here.environ, here.folder, here.inside)
        return placing.local_process(place, slot, files, attempt, shell, spec.container)
    return placing.remote_process(place, slot, spec, run, attempt, shipped)


def _rank(place: Placement, slot: Slot, files: RunFiles, attempt: int, process: placing.Process) -> RankLaunch:
    rank = place.rank
    return RankLaunch(
        rank=rank,
        stage=place.stage,
        host=slot.host,
        device=slot.device,
        argv=process.argv,
        env=process.env,
        inherit=list(process.inherit),
        env_prefix=process.env_prefix,
        cwd=str(files.folder),
        log=str(files.log(attempt, rank)),
        error=str(files.error(attempt, rank)),
        ready=str(files.ready(attempt, rank)),
        exit=str(files.exit(attempt, rank)),
        progress=str(files.progress(attempt, rank)),
        stacks=str(files.stacks(attempt, rank)),
    )


def _seen(device: str) -> str:
    """The device as the rank addresses it: of its GPU it sees nothing but that one."""
    return "cuda:0" if device.startswith("cuda:") else device


def slice_of(launch: Launch, host: str, root: str) -> dict[str, Any]:
    """What the hostd of one host is told: its own ranks, who else there is, and its paths below ``root``.

    Hosts may share a file system, so what every hostd has for itself bears its host's name.
    """
    folder = str(placing.remote_files(launch.run).folder)
    told = launch.model_dump(exclude={"job", "folder", "ranks", "version"})
    told |= {"host": host, "claim": f"host-{host}", "lock": f"{folder}/alive-{host}.lock"}
    told |= {"hostd_log": f"{folder}/hostd-{host}.log"}
    told["gang"] = [{key: getattr(rank, key) for key in ("rank", "stage", "host", "device")} for rank in launch.ranks]
    told["ranks"] = [rank.model_dump() for rank in launch.ranks if rank.host == host]
    expanded: dict[str, Any] = json.loads(json.dumps(told).replace(placing.ROOT, json.dumps(root)[1:-1]))
    return expanded


def describe(launch: Launch) -> str:
    """The launch as text for people: plan, places, and each rank's environment and command."""
    plan = launch.job.plan
    text = [f"run     {launch.run}", f"folder  {launch.folder}", f"plan    {plan.reason}", *_shipped(launch)]
    for rank, place in zip(launch.ranks, launch.job.ranks, strict=True):
        stages = ", ".join(_stage(plan, stage) for stage in plan.stages_of(rank.rank))
        text += ["", f"rank {rank.rank} on {rank.host} {rank.device}: {stages}, threads {place.threads}"]
        text += [f"  {shlex.quote(f'{name}={value}')}" for name, value in rank.env.items()]
        text.append(f"  {shlex.join(rank.argv)}")
    return _in_place(launch, "\n".join(text))


def _stage(plan: Plan, stage: int) -> str:
    layers, ratio = plan.layers_of(stage), plan.recompute_ratio[stage]
    return f"stage {stage}, layers {layers[0]}-{layers[-1]} ({len(layers)}), recompute_ratio {ratio:g}"


def _in_place(launch: Launch, text: str) -> str:
    """Where the job goes to Slurm, paths as the nodes see them, and what sbatch is given. Only a login node elsewhere
    knows its own, so that they are shown as those of other hosts are."""
    if launch.job.spec.engine != "slurm":
        return text
    from vpipe_cli.runs.store import home
    from vpipe_cli.slurm.script import script

    root = placing.ROOT if launch.job.spec.slurm.login else str(home())
    lines = [f"  {line}".rstrip() for line in script(launch, root).splitlines()]
    return "\n".join([text.replace(placing.ROOT, root), "", "sbatch is given:", "", *lines])


def _shipped(launch: Launch) -> list[str]:
    """What goes to the hosts that lack it."""
    if not launch.head:
        return []
    from vpipe_cli.shipped import NOT_BUILT, code, image_size

    text = [f"head    {launch.head}", f"code    {launch.code}: {code().size / 1e3:.0f} kB to every host without it"]
    if launch.image == NOT_BUILT:
        text.append("image   not built yet; `vpipe image build` or the launch itself builds it")
    elif launch.image:
        text.append(f"image   {launch.image}: {image_size(launch.job.spec) / 1e6:.0f} MB to every host without it")
    return text
