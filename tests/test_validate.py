"""What validate refuses, and in which words."""

from __future__ import annotations

import pytest

from worker.errors import ScheduleError
from worker.schedule import Action, Kind, Setting, build, from_csv, validate


def parse(*rows: str) -> list[list[Action]]:
    return from_csv("\n".join(rows))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0F0,0F0,0B0"], "rank 0 runs 0F0, which rank 0 runs too"),
        (["0F0,0B0", "0F0,0B0"], "rank 1 runs 0F0, which rank 0 runs too"),
        (["0F0,0I0"], "stage 0 needs F, and B or both I and W, of minibatch 0; it has FI"),
        (["0F0,0B0", "1F0,1F1,1B0,1B1"], "stage 0 needs F, and B or both I and W, of minibatch 1; it has nothing"),
        (["0F0", "0B0"], "stage 0 splits minibatch 0 over ranks: F on rank 0, B on rank 1"),
        (["1F0,1B0"], "no rank runs stage 0, but stage 1 is run"),
        (["0B0,0F0"], "rank 0 runs 0B0 before 0F0"),
        (["0F0,0W0,0I0"], "rank 0 runs 0W0 before 0I0"),
        (["0F0,0F1,0B0,0B1", "1F1,1F0,1B0,1B1"], "rank 1 wants 0F1 from rank 0, which sends 0F0 first"),
        (
            ["0F0,0B0,0F1,0B1", "1F0,1F1,1B0,1B1"],
            "deadlock: rank 0 stands at 0B0 (action 1), which waits for 1B0; "
            "rank 1 stands at 1F1 (action 1), which waits for 0F1",
        ),
    ],
)
def test_refused(rows: list[str], message: str) -> None:
    with pytest.raises(ScheduleError) as error:
        validate(parse(*rows))
    assert error.value.message == message


def test_messages_told_apart_by_number_may_overtake() -> None:
    validate(parse("0F0,0F1,0B1,0B0", "1F1,1F0,1B1,1B0"), by_order=False)


def test_bounds_are_kept() -> None:
    ranks = build("1f1b", "asp", Setting(3, range(6)))
    validate(ranks, in_flight=3, versions=3)
    with pytest.raises(ScheduleError, match="rank 0 holds the activations of 3 minibatches; the bound is 2"):
        validate(ranks, in_flight=2)
    with pytest.raises(ScheduleError, match="rank 0 holds 3 versions of its weights; the bound is 2"):
        validate(ranks, versions=2)


def test_gradients_need_an_update() -> None:
    with pytest.raises(ScheduleError, match="rank 1 ends without an update of stage 1 after 1B1"):
        validate([rank[: len(rank) - number] for number, rank in enumerate(build("1f1b", "bsp", Setting(2, range(2))))])


def test_weights_from_the_future_are_refused() -> None:
    rank = [Action(0, Kind.FORWARD, 0, 1), Action(0, Kind.BACKWARD, 0), Action(0, Kind.UPDATE, 0)]
    with pytest.raises(ScheduleError, match="rank 0: 0F0 asks for the weights of update 1, but only 0 are done"):
        validate([rank])
