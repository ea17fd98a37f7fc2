"""Bytes: what a layer keeps for its backward, what it needs for a moment, what a process holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile, record_function

if TYPE_CHECKING:
    from worker.profiler.layers import Bench

MARK = "vpipe layer "


def resident() -> int:
    """Bytes of memory this process holds now, libraries included; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def kept_bytes(bench: Bench) -> list[int]:
    """Of each stage, the storages that autograd keeps between a forward and its backward, weights left out.

    A storage that several layers keep counts for the first of them.
    """
    seen = {leaf.untyped_storage().data_ptr() for stage in bench.stages for leaf in stage.stash.current.leaves.values()}
    kept = [0] * len(bench.stages)
    alive: list[Tensor] = []

    def hooks(index: int) -> saved_tensors_hooks:
        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                alive.append(tensor)  # so that its address is not given to another one
                kept[index] += storage.nbytes()
            return tensor

        return saved_tensors_hooks(pack, lambda tensor: tensor)

    _each_forward(bench, hooks)
    return kept


def _each_forward(bench: Bench, hooks) -> None:  # type: ignore[no-untyped-def]
    forwards = [stage.forward for stage in bench.stages]

    def wrapped(index: int):  # type: ignore[no-untyped-def]
        def forward(*args, **more):  # type: ignore[no-untyped-def]
            with hooks(index):
                return forwards[index](*args, **more)

        return forward

    try:
        for index, stage in enumerate(bench.stages):
            stage.forward = wrapped(index)  # type: ignore[method-assign]
        bench.run()
    finally:
        for stage in bench.stages:
            del stage.forward


@dataclass(frozen=True)
class Footprints:
    """Of each stage, the most bytes that its forward held beyond what was there at its end."""

    workspaces: list[int]

    @classmethod
    def of(cls, bench: Bench, device: torch.device) -> Footprints:
        """Measured over one pass: from the allocator's log on a CPU; on a GPU from its counters."""
        if device.type == "cuda":
            return cls([0] * len(bench.stages))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as log:
            _each_forward(bench, lambda index: record_function(f"{MARK}{index}"))
        spans, events = [], []
        for event in log.profiler.kineto_results.events():
            if event.name() == "[memory]":
                events.append((event.start_ns(), event.nbytes()))
            elif event.name().startswith(MARK):
                index = int(event.name().removeprefix(MARK))
                spans.append((event.start_ns(), event.start_ns() + event.duration_ns(), index))
        return cls(_peaks(sorted(events), sorted(spans), len(bench.stages)))


def _peaks(events: list[tuple[int, int]], spans: list[tuple[int, int, int]], count: int) -> list[int]:
    """For each stage: how far its forward went above where it ended."""
    peaks = [0] * count
    for start, end, index in spans:
        live = peak = 0
        for when, change in events:
            if start <= when <= end:
                live += change
                peak = max(peak, live)
        peaks[index] = max(peaks[index], peak - max(0, live))
    return peaks
