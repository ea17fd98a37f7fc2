"""Axes -> points: every combination, or one value of each in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

from vpipe_cli.sweep.grammar import Axis
from worker.errors import UsageError

Point = tuple[str, ...]
"""One value of every axis, as YAML text."""


def count(axes: Sequence[Axis], zipped: bool) -> int:
    """How many points there are, before any is made.

    Raises:
        UsageError: there is no axis, or axes that are zipped are of different lengths.
    """
    if not axes:
        hint = "write it like: vpipe sweep recompute_ratio=0,0.5,1"
        raise UsageError("a sweep needs at least one KEY=V1,V2", hint)
    lengths = {len(axis.values) for axis in axes}
    if not zipped:
        return prod(len(axis.values) for axis in axes)
    if len(lengths - {1}) > 1:
        each = ", ".join(f"{axis.name} has {len(axis.values)}" for axis in axes)
        raise UsageError(f"--zip takes the values in turn, but {each}", "give every key as many values, or one")
    return max(lengths)


def points(axes: Sequence[Axis], zipped: bool) -> Iterator[Point]:
    """The points in the order in which they are typed: the last axis changes fastest. One value stands for all."""
    if not zipped:
        yield from product(*(axis.values for axis in axes))
        return
    total = count(axes, zipped)
    yield from zip(*(axis.values * (total // len(axis.values)) for axis in axes), strict=True)
