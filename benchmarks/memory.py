"""python -m benchmarks.memory: peak bytes of each stage, as JSON lines.

Bytes are those that torch's CPU allocator handed out and had not got back, from the log the profiler keeps of every
allocation: tensors, buffers of messages and temporaries inside kernels, exactly, whoever else uses the machine. The
resident set says less: it holds libraries, and pages that the allocator keeps for later.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import ranks
from benchmarks.contestants import Entry, contestant
from benchmarks.layers import Workload, encoders
from benchmarks.pipeline import is_offered, note
from worker.spec.cluster import OptimizerSpec

STAGES = 4
SGD = OptimizerSpec(name="sgd", lr=1e-4)
"""Keeps no state, so that weights, gradients and activations are all there is."""


@dataclass(frozen=True)
class Case:
    """Contestants on one workload; ``minibatches`` of each entry are run once."""

    name: str
    workload: Callable[[], Workload]
    entries: tuple[Entry, ...]
    deadline: float = 120.0


def cases(quick: bool) -> list[Case]:
    """Weights held by version, activations held by recompute_ratio, receive buffers by minibatches per step."""
    long, many = (12, (8, 16)) if quick else (24, (8, 32))
    heavy = partial(encoders, STAGES, 512, 8, 1)
    deep = partial(encoders, 4 * STAGES, 128, 128, 4)
    wide = partial(encoders, STAGES, 64, 512, 16)
    versions = [Entry("vpipe", "bsp", "1f1b", long, 4), Entry("vpipe", "asp", "1f1b", long, 1)]
    versions += [Entry("vpipe", "asp", "1f1b", long, 1, in_flight=2 * STAGES - 1)]
    versions += [Entry("vpipe", "asp", schedule, long, STAGES) for schedule in ("2bw", "accumulate")]
    ratios = [Entry("vpipe", mode, "1f1b", 8, per, recompute_ratio=r) for mode, per in (("bsp", 8), ("asp", 1)) for r in (0.0, 0.5, 1.0)]
    buffers = [Entry(runtime, "bsp", "1f1b", count, count) for count in many for runtime in ("torch", "vpipe")]
    return [
        Case("weights", heavy, tuple(versions)),
        Case("activations", deep, tuple(ratios)),
        Case("buffers", wide, tuple(buffers)),
    ]
