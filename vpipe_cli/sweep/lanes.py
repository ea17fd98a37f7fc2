"""``--parallel N``: the machines of a job divided into N lanes of as many devices, one trial at a time on each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from vpipe_cli import yamltree
from vpipe_cli.machines import HERE, Slot
from worker.errors import UsageError


def lanes_of(slots: Sequence[Slot], parallel: int) -> list[list[str]]:
    """Of each lane the entries of ``machines``, in rank order.

    Raises:
        UsageError: the devices cannot be divided evenly.
    """
    if len(slots) % parallel:
        hint = "give --parallel a divisor of it; each trial gets that share of the devices"
        raise UsageError(f"--parallel {parallel} does not divide the {len(slots)} devices of `machines`", hint)
    share = len(slots) // parallel
    return [entries(slots[lane * share : (lane + 1) * share]) for lane in range(parallel)]


def entries(slots: Sequence[Slot]) -> list[str]:
    """Slots as cluster.yml writes them: ``cpu*2``, ``gpu1:0,1``."""
    found = []
    for (host, is_cpu), group in groupby(slots, lambda slot: (slot.host, slot.device == "cpu")):
        devices = [slot.device.removeprefix("cuda:") for slot in group]
        named = f"cpu*{len(devices)}" if is_cpu else ",".join(devices)
        found.append(named if is_cpu and host == HERE else f"{host}:{named}")
    return found


def shape(slots: Sequence[Slot]) -> str:
    """What all lanes have in common: how many devices of which kind on each of their machines."""
    hosts = [list(group) for _, group in groupby(slots, lambda slot: slot.host)]
    kinds = ["+".join(slot.device.partition(":")[0] for slot in host) for host in hosts]
    return f"lane {' '.join(kinds)}"


def names(slots: Sequence[Slot]) -> list[str]:
    """Each slot as ``host:device``."""
    return [f"{slot.host}:{slot.device.removeprefix('cuda:')}" for slot in slots]


def machines_setting(lane: Sequence[str]) -> str:
    """The override that puts a job on a lane."""
    return f"machines={yamltree.dump(list(lane)).strip()}"
