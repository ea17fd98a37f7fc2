"""Machines of a job that do not answer any more: spares in their place, or all ranks on those that are left.

Nothing here is decided by a host: whoever resumes a run sees which of its machines answer, the first one's included,
and what is decided is values of cluster.yml, kept with the new run like any other.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from vpipe_cli import machines
from vpipe_cli.machines import HERE, Slot
from worker.errors import UnreachableError
from worker.spec.cluster import ClusterSpec
from worker.spec.pipeline import CHUNKED, REPLICATED


@dataclass(frozen=True)
class Remaining:
    """``overrides`` of the job for the machines that are left; ``told`` says what becomes of whom."""

    overrides: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def wanted(spec: ClusterSpec) -> bool:
    """Whether the job may run on other machines than it names."""
    return spec.engine == "ssh" and (bool(spec.spares) or spec.run.min_ranks is not None)


def every_slot(spec: ClusterSpec) -> list[Slot]:
    """Those of ``machines`` and then those of ``spares``."""
    return [*machines.slots(spec.machines), *machines.slots(spec.spares)]


def answering(spec: ClusterSpec) -> Remaining:
    """What the job becomes on those of its machines that answer now.

    Raises:
        UnreachableError: too few do. UntrustedHost: the key of one is not the recorded one.
    """
    from vpipe_cli.transport.connect import connect
    from worker.errors import UntrustedHost

    with connect(machines.hosts(every_slot(spec)), spec.ssh, partial=True) as hosts:
        for error in hosts.errors.values():
            if isinstance(error, UntrustedHost) or not isinstance(error, UnreachableError):
                raise error
        return without(spec, list(hosts.errors))


def without(spec: ClusterSpec, down: Collection[str]) -> Remaining:
    """What the job becomes without the hosts that are ``down``: spares first, then fewer ranks. Raises as above."""
    slots = machines.slots(spec.machines)
    if not any(slot.host in down for slot in slots):
        return Remaining()
    spares = [slot for slot in machines.slots(spec.spares) if slot.host not in down and slot not in slots]
    lost = ", ".join(host for host in machines.hosts(slots) if host in down)
    left, taken = _filled(slots, spares, down)
    if len(left) < len(slots):
        _refuse_too_few(spec, lost, len(left), len(slots))
    told = [f"{lost} does not answer", *([f"in its place: {', '.join(written(taken))}"] if taken else [])]
    overrides = [f"machines={json.dumps(written(left))}"]
    if len(left) < len(slots):
        told.append(f"{len(left)} of {len(slots)} ranks are left, and planned anew")
        overrides += list(_planned_anew(spec, len(left)))
    return Remaining(overrides, told)


def written(slots: Sequence[Slot]) -> list[str]:
    """Slots as ``machines`` names them."""
    found = []
    for (host, is_cpu), group in groupby(slots, lambda slot: (slot.host, slot.device == "cpu")):
        devices = [slot.device.removeprefix("cuda:") for slot in group]
        what = f"cpu*{len(devices)}" if is_cpu else ",".join(devices)
        found.append(what if is_cpu and host == HERE else f"{host}:{what}")
    return found


def _filled(slots: Iterable[Slot], spares: list[Slot], down: Collection[str]) -> tuple[list[Slot], list[Slot]]:
    """The slots with spares in place of lost ones, as far as there are any of the kind; and the spares taken."""
    left, taken = [], []
    for slot in slots:
        if slot.host not in down:
            left.append(slot)
        elif fit := next((each for each in spares if (each.device == "cpu") == (slot.device == "cpu")), None):
            spares.remove(fit)
            left.append(fit)
            taken.append(fit)
    return left, taken


def _refuse_too_few(spec: ClusterSpec, lost: str, left: int, whole: int) -> None:
    least = spec.run.min_ranks
    if least is None or left < least:
        allowed = "run.min_ranks is not set" if least is None else f"run.min_ranks is {least}"
        hint = "wait for it, name others in `spares` or `machines`, or lower run.min_ranks"
        raise UnreachableError(
            f"{lost} does not answer; without it {left} of {whole} ranks are left, and {allowed}", hint
        )


def _planned_anew(spec: ClusterSpec, ranks: int) -> Iterator[str]:
    """What ties the pipeline to the number of ranks it had, undone; what the numbers depend on, held."""
    pipeline = spec.pipeline
    stages, replicas = ranks, [1]
    if pipeline.replicas != 1 and pipeline.schedule in REPLICATED and pipeline.stages:
        stages = min(pipeline.stages, ranks)
        replicas = [ranks // stages + (stage < ranks % stages) for stage in range(stages)]
    if pipeline.schedule in CHUNKED and pipeline.stages:
        stages = ranks * (2 if pipeline.schedule == "zb-v" else max(2, pipeline.stages // ranks))
    yield f"pipeline.stages={stages}"
    yield f"pipeline.replicas={json.dumps(replicas if max(replicas) > 1 else 1)}"
    yield "pipeline.partition=auto"
    if isinstance(pipeline.recompute_ratio, list):
        yield f"pipeline.recompute_ratio={max(pipeline.recompute_ratio)}"
    if pipeline.minibatches_per_step is not None:
        yield f"pipeline.minibatches_per_step={pipeline.minibatches_per_step}"
