"""`planner` of cluster.yml: what the planner may use, and where its numbers come from."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from worker.errors import UsageError
from worker.spec.section import Count, PathText, Positive, Section

UNITS: dict[str, int] = {"": 1, "B": 1} | {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for ending, base in (("B", 1000), ("iB", 1024))
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")

Size = (
    Annotated[
        str,
        Field(pattern=r"^\s*[0-9]+(\.[0-9]+)?\s*([KMGT]i?)?B?\s*$", description="is bytes: a number, or such as 16GiB"),
    ]
    | Count
)
"""Bytes: a number, or text such as 16GiB or 800 MB."""


class PlannerSpec(Section):
    """Limits and measurements that `partition: auto` and `recompute_ratio: auto` are worked out from."""

    memory: Size | list[Size] | None = Field(
        None, description="bytes a device may use, such as 16GiB; or one per device; default: no limit"
    )
    reserve: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.05, description="share of the memory that plans leave free"
    )
    speeds: list[Positive] | None = Field(
        None, description="speed of each device as a multiple of the profiled one's; default: all alike"
    )
    profile: Literal["auto", "none"] | PathText = Field(
        "auto",
        description="auto: what `vpipe profile` measured here, or a quick measurement where recompute_ratio is auto; "
        "none: count operations on paper; or a file",
    )


def size(value: str | int) -> int:
    """Bytes of a Size. Raises UsageError where it is not one."""
    match = _SIZE.fullmatch(str(value))
    if match is None or match[2] not in UNITS or not float(match[1]):
        raise UsageError(f"{str(value)[:40]!r} is not a size", "write bytes, or a number and a unit: 16GiB, 800MB")
    return round(float(match[1]) * float(UNITS[match[2]]))


def rate(value: str) -> float:
    """Bytes per second of a text such as ``1GB/s``. Raises UsageError where it is not one."""
    return float(size(value.removesuffix("/s")))
