"""One rank of a job from start to end: meet the other ranks, train, report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from worker import clocks, data, models, trace
from worker.build import Builder
from worker.data.base import Source
from worker.errors import MismatchError
from worker.evaluate import Evaluator
from worker.executor import Executor
from worker.feed import Feeder
from worker.metrics import MetricsFile, Totals
from worker.narrate import Narrator
from worker.prefetch import Prefetched, numbers
from worker.recovery import place, restore, setup
from worker.recovery.leave import Leave
from worker.rendezvous import Rendezvous
from worker.schedule.job import minibatches_per_step
from worker.spec.files import RunFiles, write_atomic
from worker.spec.job import Job
from worker.spec.records import Evaluation, Result, StageResult, StepMetrics
from worker.torch_profile import TorchProfile
from worker.trace import Stopwatch


def train(job: Job, rank: int, files: RunFiles, attempt: int, cache: Path, rendezvous: Rendezvous) -> None:
    """Train one rank's stages to the end of the run and write down what it measured.

    Raises VpipeError: whatever kept this rank from finishing.
    """
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
    waiting = Stopwatch()
    checkpoints = place.find(files.checkpoints, rendezvous)
    saved = restore.find(builder, checkpoints, attempt, rendezvous, setup.say)
    start, offset = (saved.step, saved.data_offset) if saved else (0, 0)
    source = _open_data(job, files, cache) if placement.stage == 0 else None
    ahead = _read_ahead(job, rank, source, start, offset) if source else None
    feed = Feeder(ahead or source, minibatches_per_step(job.spec), builder.device, waiting, offset) if source else None
    metrics = MetricsFile(files.metrics(rank), job.spec.run.steps, start)
    narrator = Narrator(job.spec.run.steps)

    def report(step: StepMetrics) -> None:
        metrics.write(step)
        narrator.step(step)
        if saver and saver.is_due(step.step):
            metrics.flush()
            saver.save(step.step)
        if evaluator and evaluator.is_due(step.step):
            measured.append(evaluator.report(step.step, files, attempt))
        if saver and leave and leave.is_asked(step.step, executor):
            leave.now(step.step, saver)

    executor = builder.executor(feed, waiting, report, start)
    measured: list[Evaluation | None] = []
    evaluator = _evaluator(builder, executor, placement.stage == 0, cache, rendezvous)
    saver = setup.saver(builder, executor, attempt, checkpoints, rendezvous, offset)
    leave = Leave.from_environment(job.spec, files, rendezvous)
    narrator.holds(runtime.stage for runtime in executor.stages.values())
    if saved:
        saved.put_back(executor, rank)
    if saved and rank == 0:
        setup.record(saved, job, attempt, files)
    rendezvous.exchange("readiness", "ready")
    files.ready(attempt, rank).touch(mode=0o600)
    _record_spans(job, rank, attempt, files)
    try:
        executor.run([] if job.spec.evaluate.only else builder.actions(start))
        if evaluator and job.spec.evaluate.only:
            measured.append(evaluator.report(start, files, attempt))
        if saver:
            saver.close()
    finally:
        if ahead:
            ahead.close()
        for close in (metrics.close, trace.close):
            with suppress(OSError):  # of a full disk, which must not hide why the run ended
                close()
    rendezvous.give("results", _own_result(job, rank, metrics.totals, executor, _left_out(source, files)))
    if rank == 0 and source is not None:
        result = _merged(job, rendezvous.collect("results"), source.baseline_loss, measured)
        write_atomic(files.result, result.model_dump_json(indent=2) + "\n")
    dist.destroy_process_group()


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


def _left_out(source: Source | None, files: RunFiles) -> tuple[int, int]:
    """Records that ``source`` left out on opening, which all replicas counted alike, and since then."""
    if source is None:
        return 0, 0
    opened = json.loads(files.data.read_bytes())["skipped"]
    return opened, getattr(source, "skipped", 0) - opened


def _own_result(job: Job, rank: int, totals: Totals, executor: Executor, left_out: tuple[int, int]) -> str:
    """What one rank has to say at the end, as JSON for ``_merged``."""
    layers = sum(job.plan.partition[stage] for stage in executor.stages)
    return json.dumps(
        {
            "stage": totals.stage_result(job.ranks[rank].stage, rank, layers).model_dump(),
            "loss": totals.loss,
            "samples_per_second": totals.samples / max(totals.seconds, 1e-9),
            "seconds": totals.all_seconds,
            "step_seconds": totals.step_seconds,
            "left_out": left_out,
            "weights": {name: sha256_of(name, parameter) for name, parameter in executor.parameters().items()},
        }
    )


def _merged(job: Job, results: list[str], baseline: float, measured: Sequence[Evaluation | None]) -> Result:
    ranks = [json.loads(result) for result in results]
    weights: dict[str, str] = {}
    for number, rank in enumerate(ranks):
        for name, digest in rank["weights"].items():
            if weights.setdefault(name, digest) != digest:
                raise MismatchError(f"rank {number} ends with another {name} than the other replicas of its stage")
    return Result(
        loss=measured[-1].loss if ranks[-1]["loss"] is None and measured and measured[-1] else ranks[-1]["loss"],
        baseline_loss=baseline,
        samples_per_second=ranks[-1]["samples_per_second"],
        steps=job.spec.run.steps,
        seconds=max(rank["seconds"] for rank in ranks),
        stages=[_with_prediction(job, StageResult(**rank["stage"])) for rank in ranks],
        weights_sha256=hashlib.sha256("".join(weights[name] for name in sorted(weights)).encode()).hexdigest(),
        step_seconds=ranks[-1]["step_seconds"],
        records_left_out=max(rank["left_out"][0] for rank in ranks) + sum(rank["left_out"][1] for rank in ranks),
        predicted_step_seconds=job.plan.predicted.step_seconds if job.plan.predicted else None,
    )


def _with_prediction(job: Job, found: StageResult) -> StageResult:
    """A rank's result beside what the planner expected of its stage."""
    if job.plan.predicted is None:
        return found
    stages, memory = job.plan.stages_of(found.rank), job.plan.predicted.memory_bytes[found.stage]
    # Of several stages on one rank the metrics know the mean.
    seconds = sum(job.plan.predicted.stage_seconds[stage] for stage in stages) / len(stages)
    return found.model_copy(update={"predicted_seconds": seconds, "predicted_memory_bytes": memory})


def sha256_of(name: str, tensor: Tensor) -> str:
    """SHA-256 of a parameter: its full name, dtype, shape and bytes; as hex."""
    content = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode() + content).hexdigest()
