"""What may be typed of a sweep: values, ranges, conditions, combinations; and the trials that come of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpipe_cli.machines import Slot, slots
from vpipe_cli.sweep import begin, grid, sweepfile, trials
from vpipe_cli.sweep.grammar import Axis, axes
from vpipe_cli.sweep.lanes import entries, lanes_of
from vpipe_cli.sweep.trials import Base, Grid, expand
from vpipe_cli.sweep.where import Where
from worker.errors import ConfigError, UsageError

CLUSTER = """\
name: tiny
machines: [cpu*2]
model: {hidden_size: 32, num_layers: 2, num_heads: 2}
data: {source: python-stdlib, sequence_length: 32, minibatch_size: 4, vocab_size: 500}
run: {steps: 5, threads: 1}
"""


@pytest.fixture
def base(tmp_path: Path) -> Base:
    path = tmp_path / "cluster.yml"
    path.write_text(CLUSTER)
    return Base(path, str(path), tmp_path)


def values(text: str) -> list[str]:
    return list(axes([text])[0].values)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("lr=1e-4", ["1e-4"]),
        ("lr=1e-4, 1e-3", ["1e-4", "1e-3"]),
        ("recompute_ratio=range(0,1,0.25)", ["0", "0.25", "0.5", "0.75"]),
        ("recompute_ratio=range(0,1,0.3),1", ["0", "0.3", "0.6", "0.9", "1"]),
        ("num_layers=range(2,5)", ["2", "3", "4"]),
        ("num_layers=range(100,0,-50)", ["100", "50"]),
        ("partition=[4,8],[6, 6],auto", ["[4,8]", "[6, 6]", "auto"]),
        ("name='a,b',c", ["'a,b'", "c"]),
    ],
)
def test_values(typed: str, found: list[str]) -> None:
    assert values(typed) == found


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-9, 9).filter(bool))
def test_a_range_counts_as_python_does(first: int, end: int, step: int) -> None:
    expected = [str(number) for number in range(first, end, step)]
    if expected:
        assert values(f"seed=range({first},{end},{step})") == expected
    else:
        with pytest.raises(ConfigError, match="holds no value"):
            values(f"seed=range({first},{end},{step})")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("recompute_ration=0,1", "did you mean `pipeline.recompute_ratio`"),
        ("schedule=gpipe", "is short for"),
        ("lr", "must be KEY=V1,V2"),
        ("lr=", "the grid is empty"),
        ("lr=1,,2", "an empty value between commas"),
        ("lr=1,2,1", "has the value 1 twice"),
        ("lr=range(0,1,0)", "step 0"),
        ("lr=range(a,1)", "two or three numbers"),
        ("lr=range(0,1e9)", "at most 100,000"),
        ("partition=[4,8", "never closed"),
        ("partition=4],[8", "closes nothing"),
    ],
)
def test_mistakes_of_form(typed: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        axes([typed])
    assert message in error.value.message and error.value.message.startswith("command line: ")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        axes(["lr=1", "lr=2", "foo=1", "seed="])
    assert len(error.value.problems) == 3


def test_products_and_pairs() -> None:
    one, two, three = Axis("a", "a", ("1", "2")), Axis("b", "b", ("x", "y")), Axis("c", "c", ("z",))
    assert list(grid.points([one, two], False)) == [("1", "x"), ("1", "y"), ("2", "x"), ("2", "y")]
    assert list(grid.points([one, two, three], True)) == [("1", "x", "z"), ("2", "y", "z")]
    with pytest.raises(UsageError, match="b has 3"):
        grid.count([one, Axis("b", "b", ("1", "2", "3"))], True)
    with pytest.raises(UsageError, match="at least one"):
        grid.count([], False)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("a < 2 and b == [1, 2]", True),
        ("not a or b[0] > 5 or 'x' in c", True),
        ("sum(b) + max(b[:1]) == 4", True),
        ("0 < a < 1", False),
        ("a in [2, 3] or c == null", False),
        ("-a // 2 == -1 and a % 2 == 1", True),
    ],
)
def test_conditions(condition: str, holds: bool) -> None:
    assert Where(condition)({"a": 1, "b": [1, 2], "c": "xyz"}.__getitem__) is holds


@pytest.mark.parametrize(
    "condition",
    [
        "__import__('os')", "(lambda: 1)()", "[x for x in b]", "a ** 9", "f'{a}'", "open('x')", "a if b else c",
        "a :=1", "", "a <", "sum(b, start=1)", "().a", "9" * 5000, "(" * 500, "b'x'", "{1: 2}",
    ],
)  # fmt: skip
def test_what_is_no_condition(condition: str) -> None:
    with pytest.raises(UsageError, match="--where"):
        Where(condition)({"a": 1, "b": [1], "c": ""}.__getitem__)


@pytest.mark.parametrize("condition", ["a + 1 > 0", "b * 3 == 0", "a < b", "b[7] == 1", "1 % b[0]", "sum(a)"])
def test_conditions_that_cannot_be_worked_out(condition: str) -> None:
    with pytest.raises(UsageError, match="cannot be worked out for"):
        Where(condition)({"a": "text", "b": [0]}.__getitem__)


def test_trials_are_resolved_and_told_apart(base: Base) -> None:
    found = expand(base, Grid(axes(["recompute_ratio=0,1", "partition=auto,[3,3],[4,2]"])))
    assert [trial.number for trial in found.trials] == [1, 2, 3, 4, 5, 6][: len(found.trials)]
    assert len({trial.identity for trial in found.trials}) == len(found.trials)
    assert found.trials[0].overrides == ["recompute_ratio=0", "partition=auto"]
    again = expand(base, Grid(axes(["partition=auto", "recompute_ratio=0,1"])))
    assert {trial.identity for trial in again.trials} <= {trial.identity for trial in found.trials}


def test_the_name_of_the_job_makes_no_other_trial_but_a_value_does(base: Base) -> None:
    asked = Grid(axes(["recompute_ratio=0,1"]))
    before = [trial.identity for trial in expand(base, asked).trials]
    base.path.write_text(CLUSTER.replace("name: tiny", "name: other") + "# a remark\n")
    assert [trial.identity for trial in expand(base, asked).trials] == before
    base.path.write_text(CLUSTER.replace("hidden_size: 32", "hidden_size: 64"))
    assert not {trial.identity for trial in expand(base, asked).trials} & set(before)


def test_equal_trials_are_one(base: Base) -> None:
    found = expand(base, Grid(axes(["lr=1e-3,0.001"])))
    assert (len(found.trials), found.doubles) == (1, 1)


def test_wrong_values_are_told_as_launch_tells_them(base: Base) -> None:
    with pytest.raises(ConfigError) as error:
        expand(base, Grid(axes(["recompute_ratio=0,2,banana", "lr=1e-3,1e-4"])))
    told = [str(problem) for problem in error.value.problems]
    assert told[0] == "command line: recompute_ratio=2: pipeline.recompute_ratio: must be at most 1, is 2"
    assert told[1].startswith("command line: recompute_ratio=banana") and len(told) == 2


def test_where_leaves_out_what_cannot_be(base: Base) -> None:
    typed = axes(["pipeline.schedule=gpipe,1f1b", "sync_mode=asp,bsp"])
    with pytest.raises(ConfigError, match="needs sync_mode bsp") as error:
        expand(base, Grid(typed))
    assert "--where" in error.value.hint or error.value.problems
    condition = Where("sync_mode == 'bsp' or pipeline.schedule == '1f1b'")
    assert len(expand(base, Grid(typed, where=condition)).trials) == 3
    fixed = Where("num_layers == 2 and recompute_ratio < 1")
    assert len(expand(base, Grid(axes(["recompute_ratio=0,1"]), where=fixed)).trials) == 1
    with pytest.raises(UsageError, match="leaves none"):
        expand(base, Grid(typed, where=Where("num_layers > 2")))
    with pytest.raises(UsageError, match="unknown key"):
        expand(base, Grid(typed, where=Where("lokomotive > 2")))


def test_lanes_divide_the_machines() -> None:
    assert lanes_of(slots(["cpu*4"]), 2) == [["cpu*2"], ["cpu*2"]]
    assert lanes_of(slots(["gpu[1-2]:0-3"]), 4) == [["gpu1:0,1"], ["gpu1:2,3"], ["gpu2:0,1"], ["gpu2:2,3"]]
    assert entries([Slot("a", "cuda:0"), Slot("b", "cpu"), Slot("b", "cpu")]) == ["a:0", "b:cpu*2"]
    with pytest.raises(UsageError, match="does not divide the 2 devices"):
        lanes_of(slots(["cpu*2"]), 3)


def test_parallel_trials_have_a_lane_each(base: Base) -> None:
    found = expand(base, Grid(axes(["lr=1e-3,1e-4"]), parallel=2))
    assert found.lanes == [["cpu*1"], ["cpu*1"]] and found.trials[0].slots == ["localhost:cpu"]
    with pytest.raises(UsageError, match="cannot be swept"):
        expand(base, Grid(axes(["machines=[cpu*1],[cpu*2]"]), parallel=2))


def test_repeating_varies_the_seed() -> None:
    assert begin.repeated([], 3, 5)[0].values == ("5", "6", "7")
    with pytest.raises(UsageError, match="swept already"):
        begin.repeated(axes(["seed=1,2"]), 2, 1)


def test_too_many_trials_are_counted_not_made() -> None:
    with pytest.raises(UsageError, match="1,000,000 trials"):
        begin.size(Grid(axes(["seed=range(0,1000)", "hidden_size=range(1,1001)"])))


def test_a_sweep_file(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yml"
    path.write_text("parameters: {recompute_ratio: [0, 0.5], partition: [[3, 3], auto], name: ['a,b']}\nsteps: 9\n")
    given = sweepfile.read(path)
    assert (given.steps, given.zip) == (9, False)
    assert [axis.values for axis in axes(given.texts)] == [("0", "0.5"), ("[3, 3]", "auto"), ("'a,b'",)]
    path.write_text("parameters: {lr: []}\nstep: 9\nzip: 3\nrepeat: 0\n")
    with pytest.raises(ConfigError) as error:
        sweepfile.read(path)
    assert [problem.where.rpartition("/")[2] for problem in error.value.problems] == [
        "sweep.yml:1:18", "sweep.yml:2:1", "sweep.yml:3:6", "sweep.yml:4:9",
    ]  # fmt: skip


def test_the_command_that_makes_a_trial() -> None:
    assert trials.settings([Axis("lr", "optimizer.lr", ("1", "2"))], ("2",)) == ["lr=2"]
