"""One rank of a job from start to end: meet the other ranks, train, report."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from worker import clocks, data, heap, models, progress, results, trace
from worker.build import Builder
from worker.data.base import Source
from worker.evaluate import Evaluator
from worker.executor import Executor
from worker.feed import Feeder
from worker.prefetch import Prefetched, numbers
from worker.recovery import place, restore, setup
from worker.rendezvous import Rendezvous
from worker.schedule.job import minibatches_per_step
from worker.spec.files import RunFiles, write_atomic
from worker.spec.job import Job
from worker.step_ends import StepEnds
from worker.torch_profile import TorchProfile
from worker.trace import Stopwatch


def train(job: Job, rank: int, files: RunFiles, attempt: int, cache: Path, rendezvous: Rendezvous) -> None:
    """Train one rank's stages to the end of the run and write down what it measured.

    Raises VpipeError: whatever kept this rank from finishing.
    """
    builder = _meet(job, rank, rendezvous)
    checkpoints = place.find(files.checkpoints, rendezvous)
    saved = restore.find(builder, checkpoints, attempt, rendezvous, setup.say)
    start, offset = (saved.step, saved.data_offset) if saved else (0, 0)
    waiting, is_first = Stopwatch(), job.ranks[rank].stage == 0
    reader = _Reader(job, rank, files, cache, start, offset) if is_first else None
    feed = reader.feed(builder.device, waiting) if reader else None
    ends = StepEnds(job, rank, files, attempt, start)
    executor = builder.executor(feed, waiting, ends, start)
    ends.evaluator = _evaluator(builder, executor, is_first, cache, rendezvous)
    ends.saver = setup.saver(builder, executor, attempt, checkpoints, rendezvous, offset)
    ends.watch(executor, rendezvous)
    if saved:
        saved.put_back(executor, rank)
    if saved and rank == 0:
        setup.record(saved, job, attempt, files)
    rendezvous.exchange("readiness", "ready")
    files.ready(attempt, rank).touch(mode=0o600)
    _record_spans(job, rank, attempt, files)
    heap.settle()
    try:
        _run(builder, executor, ends, start)
    finally:
        _close(reader, ends)
    progress.at(progress.step(), "the result", job.spec.run.stall_timeout)  # for which all weights are hashed
    left_out, baseline = (reader.left_out(files), reader.source.baseline_loss) if reader else ((0, 0), None)
    own = results.own_part(job, rank, ends.metrics.totals, executor, left_out)
    results.tell(job, files, rendezvous, own, baseline, ends.measured)
    dist.destroy_process_group()


def _meet(job: Job, rank: int, rendezvous: Rendezvous) -> Builder:
    """Join the other ranks, and see that all of them are about to do the same. Raises MismatchError, ModelError."""
    placement = job.ranks[rank]
    torch.set_num_threads(placement.threads)
    dist.init_process_group(
        "gloo",
        store=rendezvous.store,
        rank=rank,
        world_size=rendezvous.ranks,
        timeout=timedelta(seconds=job.spec.run.wait_limit),
    )
    model, signature = models.build_model(job.spec), data.signature(job.spec)
    builder = Builder(job, model, signature, rank, torch.device(placement.device))
    rendezvous.agree("job, code and shapes", builder.digest())
    return builder


class _Reader:
    """What a rank of the first stage reads, ahead where the job says so."""

    def __init__(self, job: Job, rank: int, files: RunFiles, cache: Path, start: int, offset: int) -> None:
        self.source = _open_data(job, files, cache)
        self._ahead = _read_ahead(job, rank, self.source, start, offset)
        self._per_step, self._offset = minibatches_per_step(job.spec), offset

    def feed(self, device: torch.device, waiting: Stopwatch) -> Feeder:
        """The minibatches as the executor takes them."""
        return Feeder(self._ahead or self.source, self._per_step, device, waiting, self._offset)

    def left_out(self, files: RunFiles) -> tuple[int, int]:
        """Records that the source left out on opening, which all replicas counted alike, and since then."""
        opened = json.loads(files.data.read_bytes())["skipped"]
        return opened, getattr(self.source, "skipped", 0) - opened

    def close(self) -> None:
        """Read no further."""
        if self._ahead:
            self._ahead.close()


def _run(builder: Builder, executor: Executor, ends: StepEnds, start: int) -> None:
    """Every action from step ``start`` on; or only the evaluation, where the job is no more than that."""
    is_evaluation = builder.job.spec.evaluate.only
    if limit := builder.job.spec.run.first_step_timeout:
        progress.allow(start + 1, limit)
    executor.run([] if is_evaluation else builder.actions(start))
    if ends.evaluator and is_evaluation:
        ends.evaluate(start)
    if ends.saver:
        ends.saver.close()


def _close(reader: _Reader | None, ends: StepEnds) -> None:
    if reader:
        reader.close()
    for close in (ends.metrics.close, trace.close):
        with suppress(OSError):  # of a full disk, which must not hide why the run ended
            close()


def _record_spans(job: Job, rank: int, attempt: int, files: RunFiles) -> None:
    """Begin to record the steps that ``trace`` asks for. All ranks call this at once."""
    spec, stages = job.spec.trace, job.plan.stages
    window = (2 if minibatches_per_step(job.spec) > 1 else 8 * stages) if spec.window == "auto" else spec.window
    every = max(100, job.spec.run.steps // 20) if spec.interval == "auto" else spec.interval
    offset, error = clocks.offset_to_first(rank, len(job.ranks))
    if window:
        about = {"version": 1, "rank": rank, "attempt": attempt, "host": job.ranks[rank].host}
        clock = {"offset_ns": offset, "offset_error_ns": error}
        also = TorchProfile(files.torch_trace(rank)) if spec.torch else None
        trace.open_at(files.trace(rank), {**about, **clock}, every, window, also)


def _evaluator(
    builder: Builder, executor: Executor, reads: bool, cache: Path, rendezvous: Rendezvous
) -> Evaluator | None:
    if builder.job.spec.evaluate.every_steps is None and not builder.job.spec.evaluate.only:
        return None
    source = data.open_evaluation(builder.job.spec, cache) if reads else None
    return Evaluator(builder, executor, source, rendezvous)


def _read_ahead(job: Job, rank: int, source: Source, start: int, offset: int) -> Prefetched | None:
    """``source``, read ahead in the order in which this rank of the first stage will ask for its minibatches."""
    if not job.spec.data.prefetch or job.spec.evaluate.only:
        return None
    per_step, ranks = minibatches_per_step(job.spec), job.plan.ranks_of(0)
    own = numbers(start * per_step, job.spec.run.steps * per_step, per_step, ranks.index(rank), len(ranks))
    # A step is read whole before its first minibatch leaves.
    ahead = max(job.spec.data.prefetch, per_step)
    return Prefetched(source, (number + offset for number in own), ahead)


def _open_data(job: Job, files: RunFiles, cache: Path) -> Source:
    source = data.open_source(job.spec, cache)
    write_atomic(
        files.data, json.dumps({"baseline_loss": source.baseline_loss, "skipped": getattr(source, "skipped", 0)}) + "\n"
    )
    return source
