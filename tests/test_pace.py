"""The limit of a hang that a run's own steps teach: never too short, never longer than the file says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from worker.hostd.pace import ENOUGH, FACTOR, FIRST, RECENT, Pace

START = [0.0] * FIRST
"""Before what is learned from: the start, and the first step."""


def taught(took: Sequence[float], timeout: float = 600.0, floor: float | None = 60.0) -> Pace:
    """After steps that took so many seconds each."""
    pace, moment = Pace(timeout, floor), 1000.0
    for step, seconds in enumerate(took, 1):
        moment += seconds
        pace.saw(step, moment)
    return pace


EVEN = [*START, *[1.0] * ENOUGH]
LIMITS = {
    "nothing is known": ([], 600.0),
    "not enough is": (EVEN[:-1], 600.0),
    "short steps": (EVEN, 60.0),
    "longer ones": ([*START, *[5.0] * ENOUGH], 100.0),
    "very long ones": ([*START, *[31.0] * ENOUGH], 600.0),
    "the start and the first step do not count": ([500.0, 29.0, *[1.0] * ENOUGH], 60.0),
    "a step that saved, or evaluated": ([*EVEN, 25.0, 1.0], 500.0),
    "which is forgotten after a while": ([*EVEN, 25.0, *[1.0] * RECENT], 60.0),
    "sequences of any length": ([*START, *[1.0, 8.0] * ENOUGH], 160.0),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_limit_after_steps(name: str) -> None:
    took, limit = LIMITS[name]
    assert taught(took).limit()[0] == limit


@pytest.mark.parametrize("seconds", [0.001, 0.3, 2.9, 3.1, 6.0, 40.0, 1000.0])
def test_a_machine_that_gets_ten_times_slower_is_not_stuck(seconds: float) -> None:
    for timeout in (60.0, 600.0):
        pace = taught([*START, *[seconds] * ENOUGH], timeout)
        assert pace.limit()[0] > 10 * seconds or pace.limit()[0] == timeout


def test_nothing_is_learned_where_nothing_is_to_be() -> None:
    assert taught(EVEN, floor=None).limit() == (600.0, "run.stall_timeout")
    assert taught(EVEN, timeout=60.0).limit() == (60.0, "run.stall_timeout")
    assert taught(EVEN, timeout=5.0).limit() == (5.0, "run.stall_timeout")


def test_it_is_said_how_it_was_learned_and_how_to_have_it_otherwise() -> None:
    otherwise = "; `run.stall_floor: null` leaves run.stall_timeout, 600 s"
    floor = "learned: run.stall_floor, since the last steps took 1 s at most"
    assert taught(EVEN).limit() == (60.0, floor + otherwise)
    factor = f"learned: {FACTOR:g} times the slowest of the last steps, 5 s"
    assert taught([*START, *[5.0] * ENOUGH]).limit() == (100.0, factor + otherwise)


def test_steps_that_end_between_two_looks_share_the_time() -> None:
    pace = taught([0.0, 0.0, 0.0])
    pace.saw(3 + 2 * ENOUGH, 1000.0 + 10.0 * ENOUGH)
    assert pace.limit()[0] == 5.0 * FACTOR


def test_a_rank_that_is_behind_teaches_nothing() -> None:
    pace = taught(EVEN)
    pace.saw(len(EVEN) - 1, 10000.0)
    assert pace.limit()[0] == 60.0


def test_an_attempt_that_was_resumed_begins_anew() -> None:
    pace = Pace(600.0, 60.0)
    for step, moment in ((5001, 100.0), (5002, 200.0), (5003, 201.0)):
        pace.saw(step, moment)
    assert pace.limit() == (600.0, "run.stall_timeout")


def test_before_a_step_has_ended_the_first_step_s_own_limit_is_named() -> None:
    pace = Pace(600.0, 60.0)
    for _ in range(FIRST):
        assert pace.limit() == (600.0, "run.stall_timeout; run.first_step_timeout is for the first step alone")
        pace.saw(pace._step + 1, 100.0)
    assert pace.limit() == (600.0, "run.stall_timeout")
