"""python -m benchmarks.checkpoint: what saving costs a run, and how long it takes, as JSON lines.

``cost``: real training with a checkpoint every so many steps, against the same steps without one, in turn, in the same
processes. ``save`` and ``load``: the same tensors by vpipe and by torch.distributed.checkpoint, in turn, on the same
disk, fsync included on both sides. vpipe's times have the hash of every byte and the reading back of what was written
in them, which the other does not do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from benchmarks import ranks
from benchmarks.contestants import CPU, Entry
from benchmarks.layers import Workload, encoders
from worker.build import Builder
from worker.executor import Executor
from worker.feed import Feeder
from worker.recovery import place, restore, setup
from worker.recovery.saver import Saver
from worker.recovery.snapshot import Camera
from worker.rendezvous import Rendezvous
from worker.schedule.job import minibatches_per_step
from worker.spec.checkpoint import CheckpointSpec
from worker.spec.job import Job
from worker.spec.records import StepMetrics
from worker.trace import Stopwatch

STAGES = 2
DEADLINE = 1500.0


class Rank:
    """One rank of a job that can train some steps, save itself and be restored."""

    def __init__(self, workload: Workload, job: Job, rank: int, folder: Path) -> None:
        waiting = Stopwatch()
        store = dist.distributed_c10d._get_default_store()
        self.rendezvous = Rendezvous(dist.PrefixStore(folder.name, store), rank, STAGES, DEADLINE)  # type: ignore[attr-defined]
        self.builder = Builder(job, workload.model, workload.source.signature, rank, CPU)
        feed = Feeder(workload.source, minibatches_per_step(job.spec), CPU, waiting) if rank == 0 else None
        self.executor: Executor = self.builder.executor(feed, waiting, _ignore)
        self.place = place.find(folder, self.rendezvous)
        made = setup.saver(self.builder, self.executor, 1, self.place, self.rendezvous, 0, lambda text: None)
        assert made
        self.saver: Saver = made
        self._minibatches = 0

    def train(self, steps: int) -> None:
        """So many steps more."""
        per_step = minibatches_per_step(self.builder.job.spec)
        first, self._minibatches = self._minibatches, self._minibatches + steps * per_step
        actions = (a for a in self.builder.actions() if first <= a.minibatch < self._minibatches)
        self.executor.run(actions)

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint of this rank holds."""
        taken = Camera(self.executor, self.builder.rank, range(self.builder.rank, self.builder.rank + 1), CPU).take()
        return {f"{file}/{name}": t.clone() for file, each in taken.files.items() for name, t in each.items()}


def _ignore(step: StepMetrics) -> None:
    """Nobody looks at metrics."""


def _job(workload: Workload, steps: int) -> Job:
    job = Entry("vpipe", "bsp", "1f1b", 4 * steps, 4).job(workload, STAGES)
    spec = job.spec.model_copy(update={"checkpoint": CheckpointSpec(every_steps=1, keep=1, timeout=DEADLINE)})
    return job.model_copy(update={"spec": spec})


def _seconds(run: Callable[[], object]) -> float:
    """From a barrier to the last rank's end."""
    dist.barrier()
    started = time.perf_counter()
    run()
    dist.barrier()
    return time.perf_counter() - started


def cost(interval: int, repeats: int, width: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Blocks of ``interval`` steps, every second one with a checkpoint that begins with it."""
    workload = encoders(8, width, 128, 8)

    def main(rank: int) -> list[tuple[float, float]]:
        runner = Rank(workload, _job(workload, (2 * repeats + 1) * interval), rank, folder / "cost")
        runner.train(interval)
        pairs = []
        for repeat in range(repeats):
            plain = _seconds(lambda: runner.train(interval))

            def saved(step: int = repeat + 1) -> None:
                runner.saver.save(step)
                runner.train(interval)
                runner.saver.close()

            pairs.append((plain, _seconds(saved)))
        return pairs

    pairs = ranks.run(STAGES, main, DEADLINE)[0]
    shares = [with_one / without - 1 for without, with_one in pairs]
    yield {
        "case": "cost",
        "stages": STAGES,
        "interval": interval,
        "seconds_per_interval": median(without for without, _ in pairs),
        "share": median(shares),
        "spread": max(shares) - min(shares),
    }


def speed(layers: int, width: int, repeats: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Save and load by both sides, in turn."""
    workload = encoders(layers, width, 8, 1)

    def main(rank: int) -> dict[str, list[float]]:
        runner = Rank(workload, _job(workload, 2), rank, folder / "vpipe")
        runner.train(1)
        theirs = runner.tensors()
        times: dict[str, list[float]] = {name: [] for name in ("stall", "save", "load", "dcp_save", "dcp_load")}
        times["bytes"] = [float(sum(t.nbytes for t in theirs.values()))]
        for repeat in range(repeats + 1):
            other = folder / "dcp" / str(repeat)
            times["stall"].append(_seconds(partial(runner.saver.save, repeat + 1)))
            times["save"].append(times["stall"][-1] + _seconds(runner.saver.close))
            times["dcp_save"].append(_seconds(partial(dcp.save, theirs, checkpoint_id=other)))
            times["load"].append(_seconds(partial(_load, runner, repeat)))
            times["dcp_load"].append(_seconds(partial(dcp.load, theirs, checkpoint_id=other)))
        return times

    every = ranks.run(STAGES, main, DEADLINE)
    size = sum(times.pop("bytes")[0] for times in every)
    times = {name: values[1:] for name, values in every[0].items()}  # the first makes folders, memory, caches
    for case in ("save", "load"):
        ours, theirs = times[case], times[f"dcp_{case}"]
        record = {"case": case, "stages": STAGES, "bytes": size, "seconds": median(ours), "dcp_seconds": median(theirs)}
        if case == "save":
            record["stall_seconds"] = median(times["stall"])
        yield {**record, "ratio_to_dcp": median(b / a for a, b in zip(ours, theirs, strict=True))}


def _load(runner: Rank, number: int) -> None:
    rendezvous = runner.rendezvous
    fresh = Rendezvous(dist.PrefixStore(f"load-{number}", rendezvous.store), rendezvous.rank, STAGES, DEADLINE)  # type: ignore[attr-defined]
    saved = restore.find(runner.builder, runner.place, 1, fresh, lambda text: None)
    assert saved
    saved.put_back(runner.executor, runner.builder.rank)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the records; exits with 1 where a rank failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint")
    parser.add_argument("--quick", action="store_true", help="smaller, fewer repeats")
    parser.add_argument("--only", choices=["cost", "speed"])
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: a temporary one")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="vpipe-checkpoint-", dir=given.folder))
    try:
        cases = {"cost": cost(5, 2, 64, folder), "speed": speed(4, 64, 2, folder)}
        if not given.quick:
            cases = {"cost": cost(50, 3, 256, folder), "speed": speed(8, 512, 5, folder)}
        for name, records in cases.items():
            if given.only in (None, name):
                for record in records:
                    print(json.dumps(record), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
