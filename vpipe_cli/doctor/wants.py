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
        root=str(home()) if here else None,
    )


def _image_bytes(spec: ClusterSpec) -> int | None:
    """The size of an image that is a file already."""
    if spec.container is None or not spec.container.image.endswith(".sif"):
        return None
    try:
        return os.stat(spec.container.image).st_size
    except OSError:
        return None
