"""Machines, rank maps and partition -> ``machines`` in the order of ranks here, and the section ``pipeline``.

Here ranks count up stage by stage, so a stage with ranks anywhere becomes an order of the devices. How replicas take
turns is the same: each is asked in the order of its stage's list.
"""

from __future__ import annotations

import math
from itertools import groupby

from vpipe_cli.importing.maps import Cut, Maps
from vpipe_cli.importing.models import stage_layers
from vpipe_cli.importing.old import OldJob
from vpipe_cli.importing.write import Line
from vpipe_cli.machines import Slot
from worker.schedule import num_warmup

FLUSH = 32
"""Minibatches between two updates under bsp; the old programs had no other number."""


def stages_of(job: OldJob, maps: Maps | None, cut: Cut | None) -> tuple[tuple[int, ...], ...]:
    """The old ranks of every stage, in the order in which they take turns.

    Raises:
        ConfigError: a rank has no machine.
    """
    slots = len(job.machines)
    if maps is None:
        stages: tuple[tuple[int, ...], ...] = tuple((rank,) for rank in range(len(cut.blocks) if cut else 1))
        job.changed("config_file", f"is not given: one rank for each of {len(stages)} stages is taken")
    else:
        stages = maps.ranks
    over = next((rank for ranks in stages for rank in ranks if rank >= slots), None)
    if over is not None:
        message = f"has rank {over}, but machines gives {slots}: ranks 0 to {slots - 1}"
        raise maps.source.refuse("stage_to_rank_map", message) if maps else job.refuse("machines", message)
    return stages


def machines(job: OldJob, stages: tuple[tuple[int, ...], ...]) -> tuple[list[str], str | None]:
    """The devices in the order of ranks here, and the user to log in as, if the file names one."""
    slots, user = _slots(job)
    used = [rank for ranks in stages for rank in ranks]
    spare = [slot for rank, slot in enumerate(slots) if rank not in used]
    if spare:
        job.left_out("machines", f"{', '.join(_entries(spare))}: no stage is on it in the rank map")
    if used != sorted(used):
        job.changed("machines", "in another order: ranks count up stage by stage here, and keep their device")
    return _entries([slots[rank] for rank in used]), user


def _slots(job: OldJob) -> tuple[list[Slot], str | None]:
    """The device of every old rank: hosts in the order they are first named, on each as many GPUs as it is named."""
    hosts: dict[str, list[int]] = {}
    users: set[str] = set()
    for entry in job.machines:
        name, _, gpu = entry.rpartition(":")
        user, _, host = name.rpartition("@")
        users |= {user} if host != "localhost" else set()
        hosts.setdefault(host, []).append(int(gpu))
    if moved := next(((host, gpus) for host, gpus in hosts.items() if gpus != list(range(len(gpus)))), None):
        host, gpus = moved
        index = next(index for index, gpu in enumerate(gpus) if gpu != index)
        why = f"its GPU numbers were never used: {host}:{gpus[index]} ran on GPU {index} of {host}, and does here"
        job.changed("machines", why)
    if len({len(gpus) for gpus in hosts.values()}) > 1:
        job.changed(
            "machines", "the driver started equally many ranks on every host; here each gets what it is named for"
        )
    if len(users) > 1:
        job.left_out("machines", f"different users ({', '.join(sorted(users))}); give each in ssh.hosts")
    user = next(iter(users)) if len(users) == 1 else ""
    return [Slot(host, f"cuda:{index}") for host, gpus in hosts.items() for index in range(len(gpus))], user or None


def _entries(slots: list[Slot]) -> list[str]:
    """``host:0-3`` for devices that follow each other, in their order."""
    found = []
    for host, group in groupby(slots, lambda slot: slot.host):
        devices = [int(slot.device.removeprefix("cuda:")) for slot in group]
        rising = devices == list(range(devices[0], devices[0] + len(devices)))
        span = f"{devices[0]}-{devices[-1]}" if rising and len(devices) > 2 else ",".join(map(str, devices))
        found.append(f"{host}:{span}")
    return found


def pipeline(
    job: OldJob, maps: Maps | None, cut: Cut | None, stages: tuple[tuple[int, ...], ...], extra: int
) -> dict[str, Line]:
    """The section ``pipeline``. ``extra``: layers that the first block holds beside its one.

    Raises:
        ConfigError: partition and module map do not fit each other.
    """
    sizes = [len(ranks) for ranks in stages]
    found = {"stages": Line(len(stages)), **_cut(job, maps, cut, extra)}
    found["sync_mode"] = Line(
        job.text("sync_mode") or "asp", "" if job.text("sync_mode") else "as PipeDream always did"
    )
    found |= _schedule(job, sizes)
    if max(sizes) > 1:
        found["replicas"] = Line(sizes[0] if len(set(sizes)) == 1 else sizes)
    if maps is not None and maps.depth is not None:
        found |= _depth(job, maps, maps.depth, sizes)
    if maps is not None and maps.tensor > 1:
        why = f"tensor parallelism does not exist here; of each {maps.tensor} ranks the first runs the whole stage"
        job.left_out("mp_size", why, maps.source.where("mp_size"))
    if job.flag("recompute"):
        job.left_out("recompute", "nothing read it; pipeline.recompute_ratio: 1 does what it says")
    return found


def _cut(job: OldJob, maps: Maps | None, cut: Cut | None, extra: int) -> dict[str, Line]:
    if cut is None:
        layers = stage_layers(job, maps) if maps else None
        if layers:
            return {"partition": Line(layers, "counted in the stageN.py of the module")}
        if maps is not None and maps.modules[-1]:
            why = "how many layers a module has stands in its Python code; partition: auto balances them"
            job.left_out("module_to_stage_map", why, maps.source.where("module_to_stage_map"))
        return {"partition": Line("auto")}
    modules = maps.modules[:-1] if maps else tuple(range(len(cut.blocks)))
    if len(modules) != len(cut.blocks):
        message = f"has {len(cut.blocks)} entries, but module_to_stage_map has {len(modules)} modules and the criterion"
        raise cut.source.refuse("partition", message)
    if len(set(modules)) < len(modules):
        why = "modules that share a stage had a recomputed end each; here the stage has one, of the same size"
        job.changed("recompute_ratio", why, cut.source.where("recompute_ratio"))
    partition, ratios = [], []
    for stage in range(modules[-1] + 1):
        inside = [module for module, where in enumerate(modules) if where == stage]
        blocks = sum(cut.blocks[module] for module in inside)
        recomputed = sum(cut.blocks[module] * cut.ratios[module] for module in inside)
        partition.append(blocks + (0 if stage else extra))
        ratios.append(_share(recomputed, blocks, partition[-1]))
    why = f"{', '.join(map(str, cut.blocks))} blocks; the first is two layers here" if extra else ""
    counts = [math.floor(layers * ratio + 1e-9) for layers, ratio in zip(partition, ratios, strict=True)]
    told = f"the last {', '.join(map(str, counts))} layers" if any(counts) else ""
    if any(0 < ratio < 1 for ratio in cut.ratios):
        cause = "was a share of source lines; it is one of layers, rounded down to whole ones"
        job.changed("recompute_ratio", cause, cut.source.where("recompute_ratio"))
    return {
        "partition": Line(partition, why),
        "recompute_ratio": Line(ratios[0] if len(set(ratios)) == 1 else ratios, told),
    }


def _share(recomputed: float, blocks: int, layers: int) -> float:
    """The share of ``layers`` that holds as many whole ones as were whole blocks in ``recomputed``."""
    if recomputed == blocks or layers == blocks:
        return round(recomputed / blocks, 6)
    return math.ceil(math.floor(recomputed + 1e-9) / layers * 10_000) / 10_000


def _schedule(job: OldJob, sizes: list[int]) -> dict[str, Line]:
    """What flags make of the order of forwards and backwards, and how often weights change."""
    bsp = job.text("sync_mode") == "bsp"
    if job.flag("no_input_pipelining"):
        found = {"schedule": Line("none", "no_input_pipelining: one minibatch at a time")}
    elif job.flag("macrobatch") and not bsp and max(sizes) == 1:
        why = "updates came after one or two minibatches, partly with wrong weights; two versions mean 2bw here"
        job.changed("macrobatch", why)
        count = Line(max(2, len(sizes)), "as many as stages, which is what macrobatch was meant to do")
        return {"schedule": Line("2bw", "macrobatch: two versions of the weights"), "minibatches_per_step": count}
    else:
        found = {"schedule": Line("1f1b", "what the old program called GPipe was this")} if bsp else {}
        if job.flag("macrobatch") and bsp:
            job.not_needed("macrobatch", "bsp keeps one version of the weights anyway")
        elif job.flag("macrobatch"):
            job.left_out("macrobatch", "2bw, which it means here, takes no replicas; every version is kept")
    if bsp:
        found["minibatches_per_step"] = Line(FLUSH, "as the old program, which had no other number")
        job.changed("sync_mode", f"gradients are the mean of {FLUSH} minibatches; they were 4 times that")
    return found


def _depth(job: OldJob, maps: Maps, depth: tuple[int, ...], sizes: list[int]) -> dict[str, Line]:
    """``stage_to_depth_map``, where it is not PipeDream's own depth."""
    if depth == maps.warmups or len(sizes) == 1:
        return {}
    key, where = "stage_to_depth_map", maps.source.where("stage_to_depth_map")
    if job.flag("no_input_pipelining"):
        job.not_needed(key, "no_input_pipelining admits one minibatch at a time", where)
        return {}
    if max(sizes) > 1:
        own = ", ".join(map(str, maps.warmups))
        job.left_out(key, f"with replicas the depth is PipeDream's own formula, {own} warmups by stage", where)
        return {}
    if job.text("sync_mode") == "bsp" and depth[0] >= FLUSH:
        job.left_out(key, f"deeper than the {FLUSH} minibatches between two updates", where)
        return {}
    count = depth[0] + 1
    made = [num_warmup(stage, len(sizes), count) for stage in range(len(sizes))]
    if made != list(depth):
        asked = ", ".join(map(str, depth))
        why = f"asked for {asked} warmups by stage; in_flight: {count} gives {', '.join(map(str, made))}"
        job.changed(key, why, where)
    return {"in_flight": Line(count, "the first stage's depth, and one")}
