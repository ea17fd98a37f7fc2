"""Points -> trials: every one resolved against the schema and the planner before anything runs, with its identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vpipe_cli import config, machines
from vpipe_cli.sweep import grid, predict
from vpipe_cli.sweep.grammar import Axis
from vpipe_cli.sweep.identity import identity
from vpipe_cli.sweep.lanes import lanes_of, machines_setting, names, shape
from vpipe_cli.sweep.records import Trial
from vpipe_cli.sweep.scope import Scope
from vpipe_cli.sweep.where import Where
from worker.errors import ConfigError, Problem, UsageError, VpipeError
from worker.schedule.job import prove
from worker.spec.cluster import ClusterSpec

_MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Base:
    """The file that a sweep varies, and what is set in all of its trials.

    ``path`` is read; ``shown`` is how `vpipe launch` is to be told of it; relative paths in it begin in ``folder``.
    """

    path: Path
    shown: str
    folder: Path
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Grid:
    """What was typed: the axes, how they combine, and which points are meant."""

    axes: list[Axis]
    zipped: bool = False
    where: Where | None = None
    parallel: int = 1


@dataclass(frozen=True)
class Expanded:
    """The trials in the order of the grid, the machines of each lane where several run at a time, the planner's choice.

    ``doubles`` counts the points left out because another one makes the same job. ``array`` says that all trials ask
    Slurm for the same, so that they can be one array: on a login node itself, whose folders the array is of.
    """

    name: str
    trials: list[Trial]
    lanes: list[list[str]]
    choice: str | None
    doubles: int
    array: bool = False


def expand(base: Base, asked: Grid) -> Expanded:
    """Resolve and check every trial.

    Raises:
        ConfigError: with the mistakes of every trial, each once.
        UsageError: no point is left, or a schedule cannot run.
    """
    if asked.parallel > 1 and any(axis.key == "machines" for axis in asked.axes):
        raise UsageError(
            "--parallel divides `machines` among the trials, so it cannot be swept", "leave out one of both"
        )
    scope = Scope(base.path, base.folder, base.overrides, asked.axes, asked.where)
    chosen = [point for point in grid.points(asked.axes, asked.zipped) if scope.holds(point)]
    if not chosen:
        raise UsageError(f"--where {asked.where.text if asked.where else ''!r} leaves none of the trials", "loosen it")
    made: dict[str, tuple[Trial, list[int] | None]] = {}
    lanes: list[list[str]] = []
    name = ""
    problems: dict[str, Problem] = {}
    places: set[str] = set()
    for number, point in enumerate(chosen, start=1):
        overrides = [*base.overrides, *settings(asked.axes, point)]
        try:
            spec = config.load(base.path, overrides, base.folder)
            divided = asked.parallel > 1 and spec.engine != "slurm"  # where each trial is given nodes of its own
            lanes = lanes_of(machines.slots(spec.machines), asked.parallel) if divided else []
            if lanes:
                spec = config.load(base.path, [*overrides, machines_setting(lanes[0])], base.folder)
            name, trial = spec.name, _trial(len(made) + 1, point, overrides, spec, bool(lanes))
            made.setdefault(trial[0].identity, trial)
            places.add(spec.model_dump_json(include={"name", "engine", "machines", "slurm"}))
        except ConfigError as error:
            problems.update((str(problem), problem) for problem in error.problems)
        except VpipeError as error:
            here = ", ".join(settings(asked.axes, point))
            problems.setdefault(error.message, Problem(f"trial {number}: {here}", "", error.message))
        if len(problems) >= _MOST_PROBLEMS:
            break
    if problems:
        refused = ConfigError(list(problems.values()))
        refused.hint = "nothing was started; --where 'CONDITION' leaves combinations out that cannot be" if made else ""
        raise refused
    trials, auto = [trial for trial, _ in made.values()], [partition for _, partition in made.values()]
    array = spec.engine == "slurm" and len(places) == 1 and spec.slurm.login is None
    return Expanded(name, trials, lanes, predict.choice(trials, auto), len(chosen) - len(trials), array)


def settings(axes: Sequence[Axis], point: grid.Point) -> list[str]:
    """The overrides of a point: ``recompute_ratio=0.5``."""
    return [f"{axis.name}={value}" for axis, value in zip(axes, point, strict=True)]


def _trial(
    number: int, point: grid.Point, overrides: list[str], spec: ClusterSpec, shared: bool
) -> tuple[Trial, list[int] | None]:
    """The trial, and the partition that the planner would give its job."""
    slots = machines.slots(spec.machines)
    plan, prediction = predict.planned(spec, slots)
    prove(spec, plan)
    made = Trial(
        number=number,
        identity=identity(spec, plan, shape(slots) if shared else ""),
        values=list(point),
        overrides=overrides,
        slots=names(slots),
        partition=plan.partition,
        recompute_ratio=plan.recompute_ratio,
        prediction=prediction,
    )
    return made, predict.auto_partition(spec, slots)
