"""What a trial's run measured, as a Row; and the rows side by side: change, Pareto front, the planner's choice."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.metrics import last_step, steps_of
from vpipe_cli.runs.outcome import Outcome, outcome
from vpipe_cli.runs.store import Run
from vpipe_cli.sweep.lanes import machines_setting
from vpipe_cli.sweep.memory import ran_out
from vpipe_cli.sweep.records import Definition, Row, Trial
from worker.errors import NotFinished
from worker.spec.job import Job
from worker.spec.records import FINAL, RankExit, StepMetrics


@dataclass(frozen=True)
class Line:
    """A trial as the table shows it. ``change`` is its throughput against that of the first trial, as a share."""

    trial: Trial
    row: Row
    change: float | None
    is_pareto: bool
    is_choice: bool


def row_of(trial: Trial, run: Run, warmup: int | None) -> Row:
    """How the trial's run ended, or stands."""
    stands = outcome(run)
    row = Row(
        number=trial.number, identity=trial.identity, run=run.id, state=stands.state,
        step=stands.step, steps=stands.steps, loss=stands.loss,
    )  # fmt: skip
    try:
        job = placed_job(run)
    except NotFinished:
        return row
    row = row.model_copy(update=_measured(run, job, stands, warmup))
    return row.model_copy(update=_failed(run, stands)) if stands.state == "failed" else row


def _measured(run: Run, job: Job, stands: Outcome, warmup: int | None) -> dict[str, object]:
    last = job.loss_rank
    paced = without_warmup(steps_of(run.files.metrics(last)), warmup)
    seconds = sum(step.seconds for step in paced)
    newest = {rank.rank: last_step(run.files.metrics(rank.rank)) for rank in job.ranks}
    memory = {rank.stage: step.memory for rank in job.ranks if (step := newest[rank.rank])}
    found: dict[str, object] = {
        "measured_steps": len(paced),
        "samples_per_second": sum(step.samples for step in paced) / seconds if seconds else None,
        "step_seconds": median(step.seconds for step in paced) if paced else None,
        "memory_bytes": [memory[stage] for stage in sorted(memory)],
    }
    if stands.result is not None:
        found["memory_bytes"] = [stage.peak_memory_bytes for stage in stands.result.stages]
        found["idle"] = [stage.idle_share for stage in stands.result.stages]
        found["seconds"] = stands.result.seconds
    return found


def without_warmup(steps: Sequence[StepMetrics], warmup: int | None) -> list[StepMetrics]:
    """The steps that throughput is taken from. Of a run shorter than its warm-up that is the last step."""
    leave_out = max(1, len(steps) // 10) if warmup is None else warmup
    return list(steps[leave_out:] or steps[-1:])


def _failed(run: Run, stands: Outcome) -> dict[str, object]:
    if stands.failure is None:
        return {}
    failure = stands.failure
    found: dict[str, object] = {"cause": failure.cause, "stage": failure.stage}
    if ran_out(failure.cause, failure.last_lines[-5:]):
        return {**found, "state": "oom"}
    try:
        exit_record = RankExit.model_validate_json(
            (failure.log.with_name(f"rank-{failure.rank}.exit.json")).read_bytes()
        )
    except (OSError, ValueError):
        return found
    return {**found, "permanent": exit_record.permanent}


def lines(definition: Definition, rows: dict[str, Row]) -> list[Line]:
    """Every trial of the grid in its order, waiting ones too."""
    found = [
        rows.get(trial.identity, Row(number=trial.number, identity=trial.identity)).model_copy(
            update={"number": trial.number}
        )
        for trial in definition.trials
    ]
    first = found[0].samples_per_second if found and found[0].state in FINAL else None
    front = pareto(found)
    return [
        Line(trial, row, _change(row, first), row.identity in front, trial.identity == definition.choice)
        for trial, row in zip(definition.trials, found, strict=True)
    ]


def _change(row: Row, first: float | None) -> float | None:
    return row.samples_per_second / first - 1 if row.samples_per_second and first and row.state == "succeeded" else None


def pareto(rows: Sequence[Row]) -> set[str]:
    """Identities of the succeeded trials that no other one beats in throughput and peak memory both."""
    ended = [
        (row.samples_per_second, row.peak, row.identity)
        for row in rows
        if row.state == "succeeded" and row.samples_per_second is not None and row.peak is not None
    ]
    front: set[str] = set()
    least: float = float("inf")
    for _, memory, identity in sorted(ended, key=lambda each: (-each[0], each[1])):
        if memory < least:
            front.add(identity)
            least = memory
    return front


def varied(definition: Definition) -> list[int]:
    """Numbers of the axes that tell trials apart; a key with one value is the same in all."""
    columns = zip(*(trial.values for trial in definition.trials), strict=True)
    return [at for at, column in enumerate(columns) if len(set(column)) > 1] or list(range(len(definition.axes)))


def label(definition: Definition, trial: Trial) -> str:
    """``0.5, [4, 6]``: the values that tell the trial from the others."""
    return ", ".join(trial.values[at] for at in varied(definition))


def best(table: Sequence[Line]) -> Line | None:
    """The trial with the highest throughput."""
    ended = [line for line in table if line.row.state == "succeeded" and line.row.samples_per_second]
    return max(ended, key=lambda line: line.row.samples_per_second or 0.0, default=None)


def launch_command(definition: Definition, trial: Trial) -> str:
    """What to type to run this trial alone."""
    more = [machines_setting(definition.lanes[0])] if definition.lanes else []
    return shlex.join(["vpipe", "launch", definition.path, *trial.overrides, *more])
