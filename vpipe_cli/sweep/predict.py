"""What the planner expects of a trial, and which trial it would have chosen: the one seam to the planner."""

from __future__ import annotations

from collections.abc import Sequence

from vpipe_cli import outline, profiles
from vpipe_cli.machines import Slot
from vpipe_cli.sweep.records import Prediction, Trial
from worker.errors import UsageError
from worker.planner import make_plan
from worker.planner.choose import OutOfMemory
from worker.spec.cluster import ClusterSpec
from worker.spec.job import Plan


def planned(spec: ClusterSpec, slots: Sequence[Slot]) -> tuple[Plan, Prediction]:
    """A job's plan as `vpipe launch` makes it, and what it is expected to do, where its layers were measured.

    Raises:
        UsageError: the plan cannot be made; that memory is not enough is a prediction, not an error.
    """
    flops, fits, why = outline.layer_flops(spec), True if spec.planner.memory is not None else None, ""
    try:
        plan = make_plan(spec, len(slots), flops, profiles.for_launch(spec, slots))
    except OutOfMemory as error:
        fits, why = False, error.message
        spec = spec.model_copy(update={"planner": spec.planner.model_copy(update={"memory": None})})
        plan = make_plan(spec, len(slots), flops, profiles.for_launch(spec, slots))
    expected = plan.predicted
    if expected is None:
        return plan, Prediction(fits=fits, why=why)
    memory = [float(each) for each in expected.memory_bytes]
    return plan, Prediction(step_seconds=expected.step_seconds, memory_bytes=memory, fits=fits, why=why)


def auto_partition(spec: ClusterSpec, slots: Sequence[Slot]) -> list[int] | None:
    """The partition that ``partition: auto`` gives this job; None where only the model's own code knows its layers."""
    pipeline = spec.pipeline.model_copy(update={"partition": "auto"})
    try:
        return planned(spec.model_copy(update={"pipeline": pipeline}), slots)[0].partition
    except UsageError:
        return None


def choice(trials: Sequence[Trial], auto: Sequence[list[int] | None]) -> str | None:
    """Identity of the trial that the planner would choose: the one predicted fastest of those that fit.

    Where nothing is predicted: the planner's partition with the least recomputation, as long as nothing says that
    memory is short. None where the sweep does not vary what a planner chooses.
    """
    if len({(tuple(trial.partition), tuple(trial.recompute_ratio)) for trial in trials}) < 2:
        return None
    fitting = [trial for trial in trials if trial.prediction.fits is not False]
    timed = [trial for trial in fitting if trial.prediction.step_seconds is not None]
    if timed:
        return min(timed, key=lambda trial: trial.prediction.step_seconds or 0.0).identity
    partition_of = {trial.identity: partition for trial, partition in zip(trials, auto, strict=True)}
    chosen = [trial for trial in fitting if trial.partition == partition_of[trial.identity]]
    return min(chosen, key=lambda trial: sum(trial.recompute_ratio)).identity if chosen else None
