"""What a job of cluster.yml asks of a host."""

from __future__ import annotations

import os
import sys

from vpipe_cli.doctor.needs import Needs
from vpipe_cli.machines import is_local, slots
from vpipe_cli.remaining import every_slot
from vpipe_cli.runs.store import home
from worker.spec.cluster import ClusterSpec


def needs_of(spec: ClusterSpec, host: str) -> Needs:
    """The needs of one host: its slots, and the container if there is one."""
    devices = [slot.device for slot in every_slot(spec) if slot.host == host]
    gpus = tuple(int(device.removeprefix("cuda:")) for device in devices if device.startswith("cuda:"))
    container = spec.container is not None
    here = is_local(slots(spec.machines))
    return Needs(
        ranks=len(devices),
        gpus=gpus,
        container=container,
        image_bytes=None if here else _image_bytes(spec),
        python=None if container else sys.executable if here else spec.python,
        reads=() if container else _reads(spec, host),
        root=str(home()) if here else None,
    )


def _reads(spec: ClusterSpec, host: str) -> tuple[tuple[str, str], ...]:
    """What the first stage reads, if it runs there. Of a container the binds decide, and the rank says it."""
    replicas = spec.pipeline.replicas
    first = replicas[0] if isinstance(replicas, list) else replicas
    if host not in {slot.host for slot in slots(spec.machines)[:first]}:
        return ()
    measured = spec.evaluate.only or spec.evaluate.every_steps is not None
    named = {f"data.{key}": getattr(spec.data, key, None) for key in ("path", "target_path")}
    named |= {f"evaluate.{key}": getattr(spec.evaluate, key) for key in ("held_out", "held_out_target") if measured}
    return tuple((key, path) for key, path in named.items() if path)


def _image_bytes(spec: ClusterSpec) -> int | None:
    """The size of an image that is a file already."""
    if spec.container is None or not spec.container.image.endswith(".sif"):
        return None
    try:
        return os.stat(spec.container.image).st_size
    except OSError:
        return None
