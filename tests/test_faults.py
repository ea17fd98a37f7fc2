"""A short part of the battery of tests/faults: every invariant at least once. ``make faults`` runs all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import runs
from tests.faults import checkers
from tests.faults.arena import Arena, Said
from tests.faults.battery import outcomes
from tests.faults.case import CASES, carry_out
from tests.faults.cases import load
from tests.faults.references import References
from tests.rig import SLOW
from worker.spec.files import RunFiles

load()
SHORT = ("R1", "J1", "S5", "J3", "J7", "B1", pytest.param("R2l", marks=SLOW))


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    arena = Arena(tmp_path_factory.mktemp("faults"), ranks=2)
    yield arena
    arena.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SHORT)
def test_case(name: str, arena: Arena) -> None:
    assert carry_out(CASES[name], arena).problems == []


def test_a_battery_goes_through_its_cases_seed_by_seed() -> None:
    found = list(outcomes([CASES["B1"], CASES["J3"]], 2, [4, 5]))
    assert [outcome.seed for outcome in found] == [4, 4, 5, 5]
    assert sorted(outcome.case.name for outcome in found) == ["B1", "B1", "J3", "J3"]
    assert not any(outcome.problems for outcome in found)


def test_what_nobody_hurts_is_run_once(tmp_path: Path) -> None:
    result = runs.result(2)
    assert References(tmp_path).get(["2 ranks"], lambda: result) == result
    assert References(tmp_path).get(["2 ranks"], lambda: pytest.fail("it was made again")) == result


def test_every_case_says_what_it_is() -> None:
    for case in CASES.values():
        assert case.injection and case.expected and set(case.invariants.split()) <= set(checkers.CHECKERS)


# What the checkers catch: a run that was written by hand, with one thing wrong.


@pytest.fixture
def trial(tmp_path: Path) -> Any:
    """What the checkers look at of a run of two ranks that failed as it should."""
    home, sentinel = tmp_path / "home", tmp_path / "sentinel"
    sentinel.mkdir()
    files = runs.make_run(home)
    runs.fail(files)
    for path in [home, *home.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    text = "run FAILED at step 11: rank 1 (localhost, stage 1) killed by SIGKILL (out of memory, or kill -9)"
    said = Said(("launch",), 100, text, "", 1.0)
    return SimpleNamespace(
        files=files,
        attempt=1,
        state="failed",
        events=lambda kind="state": [e for e in checkers.read_events(files.events) if e["event"] == kind],
        said=[said],
        launched=said,
        expected={"state": "failed", "code": 100, "rank": 1, "cause": "SIGKILL"},
        whole=None,
        gone_after=0.1,
        wildcards=[],
        arena=SimpleNamespace(home=home, sentinel=sentinel, folder=tmp_path),
    )


def test_a_run_as_it_should_be_has_nothing_wrong(trial: Any) -> None:
    assert checkers.check(trial) == []


def _again(files: RunFiles) -> None:
    runs.state(files, "running")


WRONG = {
    "I2": (lambda trial: setattr(trial, "gone_after", float("inf")), "alive"),
    "I3": (lambda trial: _again(trial.files), "failed is followed by running"),
    "I6": (lambda trial: (trial.files.folder / "a.log").write_text(checkers.canary.SECRET), "file"),
    "I7": (lambda trial: trial.said.append(Said(("logs",), 0, "\x1b[2J", "", 1.0)), "printed"),
    "I8": (lambda trial: (trial.arena.sentinel / "new").touch(), "is new"),
    "I9": (lambda trial: trial.expected.update(rank=0), "named as first failure"),
    "I10": (lambda trial: trial.said.append(Said(("ps",), None, "", "", 1.0)), "did not end"),
    "S6": (lambda trial: trial.wildcards.append("7:80"), "all addresses"),
    "S7": (lambda trial: trial.files.job.chmod(0o644), "mode 644"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_checker_catches_what_it_is_for(name: str, trial: Any) -> None:
    harm, words = WRONG[name]
    harm(trial)
    found = checkers.CHECKERS[name](trial)
    assert found and words in found[0]
