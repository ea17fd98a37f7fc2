"""What came of a run: each rank tells its part, rank 0 writes down the whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from worker.errors import MismatchError
from worker.executor import Executor
from worker.metrics import Totals
from worker.rendezvous import Rendezvous
from worker.spec.files import RunFiles, write_atomic
from worker.spec.job import Job
from worker.spec.records import Evaluation, Result, StageResult


def tell(
    job: Job,
    files: RunFiles,
    rendezvous: Rendezvous,
    own: str,
    baseline: float | None,
    measured: Sequence[Evaluation | None],
) -> None:
    """Give this rank's ``own`` part; rank 0, which knows the data's ``baseline``, writes down the whole result.

    Raises MismatchError: replicas of a stage have ended with different weights.
    """
    rendezvous.give("results", own)
    if rendezvous.rank == 0 and baseline is not None:
        result = _merged(job, rendezvous.collect("results"), baseline, measured)
        write_atomic(files.result, result.model_dump_json(indent=2) + "\n")


def own_part(job: Job, rank: int, totals: Totals, executor: Executor, left_out: tuple[int, int]) -> str:
    """What one rank has to say at the end, as JSON for ``tell``."""
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
    last, weights = ranks[job.loss_rank], dict[str, str]()
    for number, rank in enumerate(ranks):
        for name, digest in rank["weights"].items():
            if weights.setdefault(name, digest) != digest:
                raise MismatchError(f"rank {number} ends with another {name} than the other replicas of its stage")
    return Result(
        loss=measured[-1].loss if last["loss"] is None and measured and measured[-1] else last["loss"],
        baseline_loss=baseline,
        samples_per_second=last["samples_per_second"],
        steps=job.spec.run.steps,
        seconds=max(rank["seconds"] for rank in ranks),
        stages=[_with_prediction(job, StageResult(**rank["stage"])) for rank in ranks],
        weights_sha256=hashlib.sha256("".join(weights[name] for name in sorted(weights)).encode()).hexdigest(),
        step_seconds=last["step_seconds"],
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
