"""``--optimize``: Optuna chooses which points of the grid are run, from what the ones before have measured.

It keeps no study of its own: the rows in the sweep's folder are told to a new one each time, so a sweep that was killed
goes on from what it knows. Values are categories; a point that has run is not asked for again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vpipe_cli.sweep.records import Definition, Row, Trial
from worker.errors import UsageError

Metric = Literal["samples_per_second", "step_seconds", "peak", "loss"]
HIGHER_IS_BETTER = ("samples_per_second",)
_MOST_ASKED = 200
"""Times that Optuna is asked before any point that has not run is as good as another."""


def check() -> None:
    """Raise UsageError unless Optuna is installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UsageError("--optimize needs Optuna, which is not installed", "pip install 'vpipe[optimize]'") from None


def next_trial(definition: Definition, waiting: Sequence[Trial], rows: Mapping[str, Row], running: int) -> Trial | None:
    """The trial of ``waiting`` to run next; None once as many as asked for have begun.

    Raises:
        UsageError: Optuna is not installed.
    """
    known = {trial.identity for trial in definition.trials} & set(rows)
    if not waiting or len(known) + running >= (definition.budget or 0):
        return None
    check()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction: Literal["maximize", "minimize"] = "maximize" if definition.optimize in HIGHER_IS_BETTER else "minimize"
    sampler = optuna.samplers.TPESampler(seed=definition.seed + len(known), n_startup_trials=5)
    study = optuna.create_study(direction=direction, sampler=sampler)
    space = _space(definition)
    for trial in definition.trials:
        if trial.identity in known:
            study.add_trial(_told(definition, trial, rows[trial.identity], space))
    by_values = {tuple(trial.values): trial for trial in waiting}
    for _ in range(_MOST_ASKED):
        asked = study.ask(space)
        chosen = by_values.get(tuple(str(asked.params[axis.key]) for axis in definition.axes))
        if chosen is not None:
            return chosen
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
    return waiting[0]


def _space(definition: Definition) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution

    columns = zip(*(trial.values for trial in definition.trials), strict=True)
    return {
        axis.key: CategoricalDistribution(list(dict.fromkeys(column)))
        for axis, column in zip(definition.axes, columns, strict=True)
    }


def _told(definition: Definition, trial: Trial, row: Row, space: dict[str, Any]) -> Any:
    """A row as Optuna knows it; one without the number that is asked for has failed."""
    from optuna.trial import TrialState, create_trial

    values = {axis.key: value for axis, value in zip(definition.axes, trial.values, strict=True)}
    value = getattr(row, definition.optimize or "") if row.state == "succeeded" else None
    if value is None:
        return create_trial(state=TrialState.FAIL, params=values, distributions=space)
    return create_trial(value=float(value), params=values, distributions=space)
