"""One rank of a job from start to end: meet the other ranks, train, report."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from worker import clocks, data, models, trace
from worker.build import Builder
from worker.data.base import Source
from worker.errors import MismatchError
from worker.executor import Executor
from worker.feed import Feeder
from worker.metrics import MetricsFile, Stopwatch, Totals
from worker.narrate import Narrator
from worker.recovery import place, restore, setup
from worker.rendezvous import Rendezvous
from worker.schedule.job import minibatches_per_step
from worker.spec.files import RunFiles, write_atomic
from worker.spec.job import Job
from worker.spec.records import Result, StageResult, StepMetrics


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
    feed = Feeder(source, minibatches_per_step(job.spec), builder.device, waiting, offset) if source else None
    metrics = MetricsFile(files.metrics(rank), job.spec.run.steps, start)
    narrator = Narrator(job.spec.run.steps)

    def report(step: StepMetrics) -> None:
        metrics.write(step)
        narrator.step(step)
        if saver and saver.is_due(step.step):
            metrics.flush()
            saver.save(step.step)

    executor = builder.executor(feed, waiting, report, start)
    saver = setup.saver(builder, executor, attempt, checkpoints, rendezvous, offset)
    narrator.holds(runtime.stage for runtime in executor.stages.values())
    if saved:
        saved.put_back(executor, rank)
    if saved and rank == 0:
        setup.record(saved, job, attempt, files)
    rendezvous.exchange("readiness", "ready")
    files.ready(attempt, rank).touch(mode=0o600)
    _record_spans(job, rank, attempt, files)
    try:
        executor.run(builder.actions(start))
        if saver:
            saver.close()
    finally:
        metrics.close()
        trace.close()
    rendezvous.give("results", _own_result(job, rank, metrics.totals, executor))
    if rank == 0 and source is not None:
        result = _merged(job, rendezvous.collect("results"), source.baseline_loss)
        write_atomic(files.result, result.model_dump_json(indent=2) + "\n")
    dist.destroy_process_group()


def _record_spans(job: Job, rank: int, attempt: int, files: RunFiles) -> None:
    """Begin to record the steps that ``trace`` asks for. All ranks call this at once."""
    spec, stages = job.spec.trace, job.plan.stages
    window = (2 if minibatches_per_step(job.spec) > 1 else 8 * stages) if spec.steps == "auto" else spec.steps
    every = max(100, job.spec.run.steps // 20) if spec.every_steps == "auto" else spec.every_steps
    offset, error = clocks.offset_to_first(rank, len(job.ranks))
    if window:
        about = {"version": 1, "rank": rank, "attempt": attempt, "host": job.ranks[rank].host}
        clock = {"offset_ns": offset, "offset_error_ns": error}
        trace.open_at(files.trace(rank), {**about, **clock}, every, window)


def _open_data(job: Job, files: RunFiles, cache: Path) -> Source:
    source = data.open_source(job.spec, cache)
    write_atomic(files.data, json.dumps({"baseline_loss": source.baseline_loss}) + "\n")
    return source


def _own_result(job: Job, rank: int, totals: Totals, executor: Executor) -> str:
    """What one rank has to say at the end, as JSON for ``_merged``."""
    layers = sum(job.plan.partition[stage] for stage in executor.stages)
    return json.dumps(
        {
            "stage": totals.stage_result(job.ranks[rank].stage, rank, layers).model_dump(),
            "loss": totals.loss,
            "samples_per_second": totals.samples / max(totals.seconds, 1e-9),
            "seconds": totals.all_seconds,
            "weights": {name: sha256_of(name, parameter) for name, parameter in executor.parameters().items()},
        }
    )


def _merged(job: Job, results: list[str], baseline: float) -> Result:
    ranks = [json.loads(result) for result in results]
    weights: dict[str, str] = {}
    for number, rank in enumerate(ranks):
        for name, digest in rank["weights"].items():
            if weights.setdefault(name, digest) != digest:
                raise MismatchError(f"rank {number} ends with another {name} than the other replicas of its stage")
    return Result(
        loss=ranks[-1]["loss"],
        baseline_loss=baseline,
        samples_per_second=ranks[-1]["samples_per_second"],
        steps=job.spec.run.steps,
        seconds=max(rank["seconds"] for rank in ranks),
        stages=[StageResult(**rank["stage"]) for rank in ranks],
        weights_sha256=hashlib.sha256("".join(weights[name] for name in sorted(weights)).encode()).hexdigest(),
    )


def sha256_of(name: str, tensor: Tensor) -> str:
    """SHA-256 of a parameter: its full name, dtype, shape and bytes; as hex."""
    content = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode() + content).hexdigest()
