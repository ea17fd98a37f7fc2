"""Generators: each plain schedule as a pure function from a rank's stage and a Setting to its Actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from worker.errors import ScheduleError
from worker.schedule.action import Action, Kind
from worker.schedule.setting import Setting


def gpipe(stage: int, setting: Setting) -> Iterator[Action]:
    """All forwards, then all backwards, then the update (GPipe, Huang et al. 2019).

    Where fewer minibatches may be in flight than a step has: in rounds of that many.
    """
    minibatches = setting.minibatches
    size = setting.in_flight or len(minibatches) or 1
    for start in range(0, len(minibatches), size):
        for kind in (Kind.FORWARD, Kind.BACKWARD):
            for minibatch in minibatches[start : start + size]:
                yield Action(stage, kind, minibatch)
    yield from update(minibatches, stage)


def one_f_one_b_flush(stage: int, setting: Setting) -> Iterator[Action]:
    """1F1B that drains before its one update (PipeDream-Flush, Narayanan et al. 2021)."""
    yield from _one_f_one_b(stage, setting.minibatches, setting.warmup_of(stage))
    yield from update(setting.minibatches, stage)


def one_at_a_time_flush(stage: int, setting: Setting) -> Iterator[Action]:
    """No pipelining: a minibatch goes through all stages and back before the next one enters; one update."""
    yield from _one_f_one_b(stage, setting.minibatches, 0)
    yield from update(setting.minibatches, stage)


def one_f_one_b_stream(stage: int, setting: Setting) -> Iterator[Action]:
    """1F1B without a flush, an update after every backward (PipeDream, Narayanan et al. 2019)."""
    return _with_updates(_one_f_one_b(stage, setting.minibatches, setting.warmup_of(stage)), setting.minibatches, 1)


def one_at_a_time_stream(stage: int, setting: Setting) -> Iterator[Action]:
    """No pipelining, an update after every backward: what one process does, spread over the stages."""
    return _with_updates(_one_f_one_b(stage, setting.minibatches, 0), setting.minibatches, 1)


def accumulate(stage: int, setting: Setting) -> Iterator[Action]:
    """1F1B without a flush, an update every ``per_update`` backwards, one version of the weights.

    A backward meets weights newer than its forward's, by at most ceil(warmup / per_update) updates.
    """
    actions = _one_f_one_b(stage, setting.minibatches, setting.warmup_of(stage))
    return _with_updates(actions, setting.minibatches, setting.per_update or setting.stages)


def two_versions(stage: int, setting: Setting) -> Iterator[Action]:
    """1F1B without a flush, an update every ``per_update`` backwards (PipeDream-2BW, Narayanan et al. 2021).

    All stages run batch b on the weights that b - 1 updates made: one update late whatever the depth, so that two
    versions suffice.

    Raises:
        ScheduleError: if an update covers fewer minibatches than are in flight; a third version would be needed.
    """
    minibatches, size = setting.minibatches, setting.per_update or setting.stages
    depth = setting.warmup_of(0) + 1
    if size < depth:
        raise ScheduleError(
            f"2bw: {size} minibatches per update are fewer than the {depth} in flight",
            f"set minibatches_per_step to at least {depth}",
        )
    actions = _one_f_one_b(stage, minibatches, setting.warmup_of(stage))
    for action in _with_updates(actions, minibatches, size):
        if action.kind is Kind.FORWARD:
            version = max(0, setting.updates + minibatches.index(action.minibatch) // size - 1)
            yield Action(stage, Kind.FORWARD, action.minibatch, version)
        else:
            yield action


def update(minibatches: Sequence[int], *stages: int) -> Iterator[Action]:
    """The update at the end of a step, of each of a rank's stages; none where the rank had no minibatch."""
    return (Action(stage, Kind.UPDATE, minibatches[-1]) for stage in stages if minibatches)


def _one_f_one_b(stage: int, minibatches: range, warmup: int) -> Iterator[Action]:
    """Warmup forwards, then a forward and a backward in turn, then the remaining backwards; no update."""
    forwards = (Action(stage, Kind.FORWARD, minibatch) for minibatch in minibatches)
    backwards = (Action(stage, Kind.BACKWARD, minibatch) for minibatch in minibatches)
    for _, forward in zip(range(warmup), forwards, strict=False):
        yield forward
    yield from chain.from_iterable((forward, next(backwards)) for forward in forwards)
    yield from backwards


def _with_updates(actions: Iterable[Action], minibatches: range, size: int) -> Iterator[Action]:
    """``actions`` with an update after every ``size`` backwards; the last update takes what is left."""
    backwards = 0
    for action in actions:
        yield action
        if action.kind is Kind.BACKWARD:
            backwards += 1
            if backwards % size == 0 or backwards == len(minibatches):
                yield Action(action.stage, Kind.UPDATE, action.minibatch)
