"""What a rank says in its log."""

from __future__ import annotations

import pytest

from worker.narrate import Narrator
from worker.spec.records import StepMetrics


def step(number: int, loss: float | None = None) -> StepMetrics:
    numbers = dict.fromkeys(("time", "lr", "forward", "backward", "update"), 0.0)
    return StepMetrics(step=number, samples=8, minibatches=1, loss=loss, wait=0.05, seconds=0.1, memory=1, **numbers)


def test_first_and_last_step_are_told_with_the_mean_of_what_lay_between(capsys: pytest.CaptureFixture[str]) -> None:
    narrator = Narrator(4)
    for number, loss in enumerate((8.0, 7.0, 6.0, 5.0), 1):
        narrator.step(step(number, loss))
    assert capsys.readouterr().out.splitlines() == [
        "step 1/4  loss 8.000  100 ms a step, 50% waiting",
        "step 4/4  loss 6.000  100 ms a step, 50% waiting",
    ]


def test_a_stage_without_the_loss_tells_its_times(capsys: pytest.CaptureFixture[str]) -> None:
    Narrator(1).step(step(1))
    assert capsys.readouterr().out == "step 1/1  100 ms a step, 50% waiting\n"
