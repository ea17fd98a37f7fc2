"""GPUs: there, driven well enough for the image, and free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vpipe_cli.doctor.finding import Finding
from vpipe_cli.doctor.needs import Needs
from vpipe_cli.render.text import size

Facts = dict[str, Any]
BUSY = 512 << 20
"""Bytes in use above which a GPU without a visible process is taken for busy."""


def gpus(host: str, facts: Facts, needs: Needs) -> Iterator[Finding]:
    """The GPUs that cluster.yml names exist and work."""
    if not needs.gpus:
        return
    there = {device["index"]: device for device in facts["devices"]}
    if facts["driver"] is None:
        remedy = "install NVIDIA's driver there, or give that host CPU slots"
        yield Finding(host, "gpus", "no nvidia-smi on the PATH, so no GPU to use", "fail", remedy)
        return
    if missing := [index for index in needs.gpus if index not in there]:
        remedy = f"it has {_numbers(sorted(there))}; write those in `machines`"
        yield Finding(host, "gpus", f"no GPU {_numbers(missing)}", "fail", remedy)
    for index in needs.gpus:
        if (device := there.get(index)) and device["ecc"]:
            remedy = "memory that cannot be corrected any more ruins results; have the GPU reset or replaced"
            yield Finding(host, "gpus", f"GPU {index}: {device['ecc']} uncorrected memory errors", "warn", remedy)
    used = [there[index] for index in needs.gpus if index in there]
    for kind in sorted({(device["name"], device["total"]) for device in used}, key=str):
        count = sum((device["name"], device["total"]) == kind for device in used)
        yield Finding(host, "gpus", f"{count} x {kind[0]}, {size(kind[1] or 0)}")


def driver(host: str, facts: Facts, needs: Needs) -> Iterator[Finding]:
    """The driver can run the CUDA of the image. A newer minor version of CUDA runs on a driver of the same major."""
    if not needs.gpus or facts["driver"] is None:
        return
    newest = facts["cuda"]
    what = f"{facts['driver']}, up to CUDA {newest or 'unknown'}"
    wanted = needs.image_cuda
    if wanted and newest and _major(wanted) > _major(newest):
        remedy = f"build the image with CUDA {_major(newest)}, or have the driver updated"
        yield Finding(host, "driver", f"{what}; the image has CUDA {wanted}", "fail", remedy)
    else:
        yield Finding(host, "driver", what)


def busy(host: str, facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Nobody else computes on the GPUs that are asked for."""
    remedy = "choose other GPUs, wait, or if it is yours and forgotten: `vpipe ps --orphans`, `vpipe rm --orphans`"
    users = {index: [each for each in facts["processes"] if each["gpu"] == index] for index in needs.gpus}
    for index, processes in users.items():
        device = next((each for each in facts["devices"] if each["index"] == index), None)
        if processes:
            who = ", ".join(f"{each['user'] or 'someone'}'s process {each['pid']}" for each in processes[:3])
            yield Finding(host, "busy", f"GPU {index} is used by {who}", "warn", remedy)
        elif device and (device["used"] or 0) > BUSY:
            yield Finding(host, "busy", f"GPU {index} has {size(device['used'])} in use", "warn", remedy)


def _major(version: str) -> int:
    head = version.split(".")[0]
    return int(head) if head.isdigit() else 0


def _numbers(indices: list[int]) -> str:
    return ", ".join(map(str, indices)) or "none"
