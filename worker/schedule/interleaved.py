"""Interleaved 1F1B: several virtual stages per rank, so that a minibatch passes each rank more than once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from worker.errors import ScheduleError
from worker.schedule.action import Action, Kind
from worker.schedule.generate import update
from worker.schedule.setting import Setting

Pass = tuple[int, int]
"""A virtual stage and a minibatch."""


def interleaved(rank: int, setting: Setting) -> Iterator[Action]:
    """Each rank runs a round of minibatches through its first chunk, then the same ones through its next (Megatron-LM).

    The order is that of Narayanan et al. 2021, with rounds as torch.distributed.pipelining sizes them. The bubble
    shrinks by the number of chunks; every minibatch crosses that many times as many cuts. ``in_flight`` sets the
    minibatches of a round.

    Raises:
        ScheduleError: with fewer than two chunks, or where rounds do not fill the step.
    """
    if setting.chunks < 2:
        raise ScheduleError("interleaved needs at least two chunks per rank", "set chunks to 2 or more")
    size = _round(setting)
    stages = range(rank, setting.chunks * setting.stages, setting.stages)
    forwards = _passes(stages, setting.minibatches, size)
    backwards = _passes(stages[::-1], setting.minibatches, size)
    warmup = min((setting.chunks - 1) * size + 2 * (setting.stages - 1 - rank), len(forwards))
    for number in range(len(forwards) + warmup):
        if number < len(forwards):
            stage, minibatch = forwards[number]
            yield Action(stage, Kind.FORWARD, minibatch)
        if number >= warmup:
            stage, minibatch = backwards[number - warmup]
            yield Action(stage, Kind.BACKWARD, minibatch)
    yield from update(setting.minibatches, *stages)


def _passes(stages: Sequence[int], minibatches: Sequence[int], size: int) -> list[Pass]:
    """Rounds of ``size`` minibatches, each through all ``stages`` before the next round."""
    rounds = [minibatches[start : start + size] for start in range(0, len(minibatches), size)]
    return [(stage, minibatch) for each in rounds for stage in stages for minibatch in each]


def _round(setting: Setting) -> int:
    """Minibatches a chunk runs before the next chunk takes over: at least one for each stage, all rounds alike."""
    count = len(setting.minibatches)
    size = setting.in_flight or count // max(1, count // setting.stages)
    if size < min(setting.stages, count):
        raise ScheduleError(
            f"interleaved: rounds of {size} minibatches are too short for {setting.stages} stages",
            f"set in_flight to at least {setting.stages}",
        )
    if size and count % size:
        multiple = -(-count // setting.stages) * setting.stages
        raise ScheduleError(
            f"interleaved: {count} minibatches do not fill rounds of {size}",
            f"set minibatches_per_step to a multiple of {setting.stages}, such as {multiple}",
        )
    return max(1, size)
