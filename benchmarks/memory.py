"""python -m benchmarks.memory: peak bytes of each stage, as JSON lines.

Bytes are those that torch's CPU allocator handed out and had not got back, from the log the profiler keeps of every
allocation: tensors, buffers of messages and temporaries inside kernels, exactly, whoever else uses the machine. Pages
that a rank shares with another count for both. The resident set says less: it holds libraries, and pages that the
allocator keeps for later.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import set_num_threads
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import ranks
from benchmarks.contestants import Entry, contestant
from benchmarks.layers import Workload, bert, encoders
from benchmarks.pipeline import is_offered, note
from worker.schedule import num_warmup
from worker.spec.cluster import OptimizerSpec

STAGES = 4
SGD = OptimizerSpec(name="sgd", lr=1e-4)
"""Keeps no state, so that weights, gradients and activations are all there is."""


@dataclass(frozen=True)
class Case:
    """Contestants on one workload, each in processes of its own."""

    name: str
    workload: Callable[[], Workload]
    entries: tuple[Entry, ...]
    deadline: float = 120.0


def cases() -> list[Case]:
    """Weights held by version, activations held by recompute_ratio, message buffers held by minibatches per step."""

    def entry(sync_mode: str, minibatches: int, per_update: int, schedule: str = "1f1b", **more: Any) -> Entry:
        return Entry(
            **{"runtime": "vpipe", "rule": SGD, **more},
            sync_mode=sync_mode,
            schedule=schedule,
            minibatches=minibatches,
            per_update=per_update,
        )

    versions = [entry("bsp", 12, 4), entry("asp", 12, 1), entry("asp", 12, 1, in_flight=2 * STAGES - 1)]
    versions += [entry("asp", 12, STAGES, "2bw"), entry("asp", 12, STAGES, "accumulate")]
    modes = (("bsp", 8), ("asp", 1))
    ratios = [entry(mode, 8, per, recompute_ratio=ratio) for mode, per in modes for ratio in (0.0, 0.5, 1.0)]
    buffers = [entry("bsp", count, count, runtime=name) for count in (8, 32) for name in ("torch", "vpipe")]
    return [
        Case("weights", partial(encoders, STAGES, 512, 8, 1), tuple(versions)),
        Case("activations", partial(bert, 8, 128, 128, 8), tuple(ratios)),
        Case("buffers", partial(encoders, STAGES, 64, 512, 8), tuple(buffers)),
    ]


def measure(case: Case, entry: Entry) -> Iterator[dict[str, Any]]:
    """One record for each stage. Raises RankFailure."""
    workload = case.workload()
    for count in (1, entry.per_update):
        workload.source.whole(count)  # made before the ranks are: the data is not a runtime's to answer for

    def main(rank: int) -> tuple[int, int]:
        return footprint(lambda: contestant(entry, workload, STAGES, rank))

    for stage, (weights, peak) in enumerate(ranks.run(STAGES, main, case.deadline)):
        graphs = num_warmup(stage, STAGES, entry.in_flight) + 1
        yield {
            "case": case.name,
            "runtime": entry.runtime,
            "sync_mode": entry.sync_mode,
            "schedule": entry.schedule,
            "stages": STAGES,
            "stage": stage,
            "minibatches": entry.minibatches,
            "per_update": entry.per_update,
            "recompute_ratio": entry.recompute_ratio,
            "graphs_in_flight": graphs,
            "weight_bytes": weights,
            "peak_bytes": peak,
            "peak_over_weights": round(peak / weights, 2),
            # PipeDream and vPipe: live weights, a clone for each graph in flight whatever the sync_mode, a gradient.
            "original_over_weights": float(graphs + 2) if case.name == "weights" else None,
        }


def footprint(build: Callable[[], Callable[[], None]]) -> tuple[int, int]:
    """Bytes alive after building, and at most until the end of one run."""
    before = _shared()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as log:
        run = build()
        with record_function("built"):
            pass
        run()
    live = built = peak = 0
    for event in sorted(log.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
        elif event.name() == "built":
            built = live
    return built, peak + _shared() - before


def _shared() -> int:
    """Bytes of shared memory that this process has touched; nobody gives any back during a run."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssShmem")) * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the records of all cases as they come; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this")
    chosen = parser.parse_args(arguments)
    set_num_threads(1)
    failed = False
    for case in (case for case in cases() if chosen.only in case.name):
        for entry in (entry for entry in case.entries if is_offered(entry, case.workload(), STAGES)):
            try:
                for record in measure(case, entry):
                    print(json.dumps(record), flush=True)
            except ranks.RankFailure as error:
                note(f"{case.name}, {entry.sync_mode} {entry.schedule}: {error}")
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
