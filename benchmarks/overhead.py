"""python -m benchmarks.overhead: what the runtime itself costs a rank, by how long its layers leave it idle."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks import ranks
from benchmarks.layers import sleepers
from benchmarks.pipeline import KB, Case, asp, bsp, measure, note

FIELDS = (
    "case",
    "runtime",
    "sync_mode",
    "schedule",
    "minibatches",
    "overhead_cpu_milliseconds",
    "milliseconds",
    "repeats",
)
SLEEPS = (0.0, 0.001, 0.010)
"""Seconds asleep in the forward, the input gradient and the weight gradient each."""


def cases(minibatches: int, repeats: int) -> list[Case]:
    """Two ranks, 1F1B with and without a flush; the flush once for all minibatches."""
    entries = (*bsp(2, minibatches, ("1f1b",))[:-1], *asp(2, minibatches, minibatches)[:-1])
    workload = partial(sleepers, 2, 64 * KB)
    return [
        Case(f"sleep {1e3 * sleep:g} ms", partial(workload, sleep, sleep, sleep), 2, 64 * KB, entries, repeats, 120.0)
        for sleep in SLEEPS
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the records of all cases; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--minibatches", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    failed = False
    for case in cases(chosen.minibatches, chosen.repeats):
        try:
            for record in measure(case):
                print(json.dumps({field: record[field] for field in FIELDS}), flush=True)
        except ranks.RankFailure as error:
            note(f"{case.name}: {error}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
