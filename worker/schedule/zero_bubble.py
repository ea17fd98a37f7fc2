"""Zero-bubble schedules with a fixed order: the weight gradient, which nobody waits for, fills the gaps."""

from __future__ import annotations

from collections.abc import Iterator

from worker.schedule.action import Action, Kind
from worker.schedule.generate import update
from worker.schedule.setting import Setting


def zb_h1(stage: int, setting: Setting) -> Iterator[Action]:
    """The memory of 1F1B's first stage on every stage, a third of its bubble (ZB-H1, Qi et al. 2024)."""
    yield from handcrafted(stage, setting, *_depth(stage, setting, 1))
    yield from update(setting.minibatches, stage)


def zb_h2(stage: int, setting: Setting) -> Iterator[Action]:
    """Twice that memory and no bubble where F = I = W (ZB-H2, Qi et al. 2024)."""
    yield from handcrafted(stage, setting, *_depth(stage, setting, 2))
    yield from update(setting.minibatches, stage)


def lag_of(stage: int, stages: int, depth: int) -> int:
    """Weight gradients that ``stage`` has due, where all stages hold ``depth`` minibatches and have one rank each."""
    return round(stage * (depth - 1) / max(1, stages - 1))


def _depth(stage: int, setting: Setting, rounds: int) -> tuple[int, int]:
    """Minibatches that a rank holds: ``rounds`` for each rank behind the first, and one; how many are due in the end.

    With replicas each has its share of them.
    """
    if setting.replicas is None:
        depth = setting.in_flight or rounds * (setting.stages - 1) + 1
        return depth, lag_of(stage, setting.stages, depth)
    most, own = (setting.ranks_from(each) // setting.replicas[stage] for each in (0, stage))
    return rounds * most + 1, rounds * (most - own)


def handcrafted(stage: int, setting: Setting, depth: int, lag: int) -> Iterator[Action]:
    """A rank holds ``depth`` minibatches: the later its stage, the fewer forwards and the more weight gradients due.

    Warmup forwards; then I, the W due, F in turn; then I and W; the ``lag`` weight gradients left last. No update.
    """
    minibatches = setting.minibatches
    forwards, due = iter(minibatches), iter(minibatches)
    for _, minibatch in zip(range(depth - lag), forwards, strict=False):
        yield Action(stage, Kind.FORWARD, minibatch)
    for number, minibatch in enumerate(minibatches):
        yield Action(stage, Kind.INPUT_GRAD, minibatch)
        if number >= lag:
            yield Action(stage, Kind.WEIGHT_GRAD, next(due))
        for following in forwards:
            yield Action(stage, Kind.FORWARD, following)
            break
    for minibatch in due:
        yield Action(stage, Kind.WEIGHT_GRAD, minibatch)
