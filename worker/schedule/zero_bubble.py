"""Zero-bubble schedules with a fixed order: the weight gradient, which nobody waits for, fills the gaps."""

from __future__ import annotations

from collections.abc import Iterator

from worker.schedule.action import Action, Kind
from worker.schedule.generate import update
from worker.schedule.setting import Setting


def zb_h1(stage: int, setting: Setting) -> Iterator[Action]:
    """The memory of 1F1B's first stage on every stage, a third of its bubble (ZB-H1, Qi et al. 2024)."""
    yield from handcrafted(stage, setting, setting.in_flight or setting.stages)
    yield from update(setting.minibatches, stage)


def zb_h2(stage: int, setting: Setting) -> Iterator[Action]:
    """Twice that memory and no bubble where F = I = W (ZB-H2, Qi et al. 2024)."""
    yield from handcrafted(stage, setting, setting.in_flight or 2 * setting.stages - 1)
    yield from update(setting.minibatches, stage)


def handcrafted(stage: int, setting: Setting, depth: int) -> Iterator[Action]:
    """Every stage holds ``depth`` minibatches: the later it is, the fewer forwards and the more weight gradients due.

    Warmup forwards; then I, the W due, F in turn; then I and W; the rest of the weight gradients last. No update.
    """
    minibatches = setting.minibatches
    lag = round(stage * (depth - 1) / max(1, setting.stages - 1))
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
