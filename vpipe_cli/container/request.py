"""What a command line asks of images, as values."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vpipe_cli import config
from worker.errors import UsageError
from worker.spec.cluster import ClusterSpec

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def wanted(given: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The image to build and its arguments: a definition or a registry's image, or those of a job.

    Raises:
        UsageError: neither; or an argument is not NAME=VALUE; or the job names no image.
    """
    name = given[0] if given else config.DEFAULT
    if not name.endswith((".def", ".sif")) and "://" not in name:
        return of_job(config.load(*config.split(given)))
    pairs = [text.partition("=") for text in given[1:]]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise UsageError(f"{wrong[0]!r} is no NAME=VALUE", "after the image come values for its {{ NAME }}s")
    return name, {name: value for name, _, value in pairs}


def of_job(spec: ClusterSpec) -> tuple[str, dict[str, str]]:
    """The image of a job and its arguments. Raises UsageError if it has none."""
    if spec.container is None:
        raise UsageError("the job runs without a container", "write container: {image: containers/cpu.def}")
    return spec.container.image, dict(spec.container.build_args)


def bytes_of(text: str | None) -> int | None:
    """``20G`` as bytes. Raises UsageError for what is no size."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"{text!r} is no size", "write 500M or 20G")
    return int(float(match[1]) * UNITS[match[2].upper()])
