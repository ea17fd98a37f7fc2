"""Optuna's choice among the points of a grid: as many as asked for, none twice, better than by chance."""

from __future__ import annotations

import sys

import pytest

from vpipe_cli.sweep import optimize
from vpipe_cli.sweep.records import AxisRecord, Definition, Row, Trial
from worker.errors import UsageError


def grid(metric: str, budget: int) -> Definition:
    """Two keys of ten values each."""
    points = [(x, y) for x in range(10) for y in range(10)]
    trials = [
        Trial(
            number=number, identity=f"{x},{y}", values=[str(x), str(y)], overrides=[], slots=[], partition=[1],
            recompute_ratio=[0.0],
        )
        for number, (x, y) in enumerate(points, start=1)
    ]  # fmt: skip
    return Definition(
        sweep="s", name="s", created=0.0, cwd="/", path="c", folder="/", command="", trials=trials, order=[],
        axes=[AxisRecord(name="x", key="a.x"), AxisRecord(name="y", key="a.y")], optimize=metric, budget=budget,
    )  # fmt: skip


def searched(definition: Definition) -> dict[str, Row]:
    """All rows of a search whose best point is 7,2."""
    rows: dict[str, Row] = {}
    waiting = list(definition.trials)
    while trial := optimize.next_trial(definition, waiting, rows, 0):
        waiting.remove(trial)
        x, y = map(int, trial.values)
        worth = 100.0 - 9 * (x - 7) ** 2 - 9 * (y - 2) ** 2
        state = {"state": "oom"} if x == 9 else {"state": "succeeded", "samples_per_second": worth, "loss": -worth}
        rows[trial.identity] = Row.model_validate({"number": trial.number, "identity": trial.identity, **state})
    return rows


@pytest.mark.parametrize("metric", ["samples_per_second", "loss"])
def test_it_runs_as_many_as_asked_for_and_comes_near_the_best(metric: str) -> None:
    rows = searched(grid(metric, 25))
    assert len(rows) == 25
    assert max(row.samples_per_second or -999.0 for row in rows.values()) >= 82.0
    assert searched(grid(metric, 25)).keys() == rows.keys(), "the seed makes it the same again"


def test_what_runs_counts_and_a_search_goes_on_from_its_rows() -> None:
    definition = grid("loss", 3)
    row = {"0,0": Row(number=1, identity="0,0", state="failed"), "of a former grid": Row(number=9, identity="z")}
    assert optimize.next_trial(definition, definition.trials[1:], row, 1) is not None
    assert optimize.next_trial(definition, definition.trials[1:], row, 2) is None
    assert optimize.next_trial(definition, [], row, 0) is None


def test_without_optuna_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match="not installed") as error:
        optimize.check()
    assert "vpipe[optimize]" in error.value.hint
