"""ZB-V: two virtual stages per rank, the second on the way back, so that the last rank hands over to itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from worker.errors import ScheduleError
from worker.schedule.action import Action, Kind
from worker.schedule.generate import update
from worker.schedule.setting import Setting

FORWARD, INPUT, WEIGHT = Kind.FORWARD, Kind.INPUT_GRAD, Kind.WEIGHT_GRAD


def zb_v(rank: int, setting: Setting) -> Iterator[Action]:
    """No bubble but the filling where F = I = W, with the memory of 1F1B on every rank (ZB-V, Qi et al. 2024).

    A rank holds stage ``rank`` on the way down and the one as far from the end on the way up. The loss is on the first
    rank, so its gradient is on its way as soon as a minibatch has come up. The order is the authors' fixed one, as
    torch.distributed.pipelining has it: fewer minibatches than fill the pipeline leave their places empty.

    Raises:
        ScheduleError: with other than two chunks, or another depth than its own.
    """
    if setting.chunks != 2:
        raise ScheduleError(f"zb-v needs two chunks per rank, not {setting.chunks}", "set chunks to 2")
    if setting.in_flight is not None:
        raise ScheduleError("zb-v has one depth, that of 1f1b", "leave in_flight out")
    behind = setting.stages - rank
    full = max(2 * setting.stages - 1, len(setting.minibatches))
    down, up = rank, 2 * setting.stages - 1 - rank
    done: Counter[tuple[int, Kind]] = Counter()

    def each(stage: int, *kinds: Kind) -> Iterator[Action]:
        """The next minibatch of ``stage`` that waits for these."""
        for kind in kinds:
            number = done[stage, kind]
            done[stage, kind] += 1
            if number < len(setting.minibatches):
                yield Action(stage, kind, setting.minibatches[number])

    for _ in range(2 * behind - 1):
        yield from each(down, FORWARD)
    for _ in range(rank):
        yield from each(up, FORWARD)
        yield from each(down, FORWARD)
    for _ in range(behind):
        yield from each(up, FORWARD, INPUT, WEIGHT)
    while done[up, FORWARD] < full:
        if done[down, FORWARD] < full:
            yield from each(down, FORWARD)
        yield from each(down, INPUT, WEIGHT)
        yield from each(up, FORWARD, INPUT, WEIGHT)
    for _ in range(rank):
        yield from each(down, INPUT)
        yield from each(up, INPUT)
    for _ in range(behind):
        yield from each(down, INPUT, WEIGHT)
    for stage in (up, down):
        while done[stage, WEIGHT] < full:
            yield from each(stage, WEIGHT)
    yield from update(setting.minibatches, down, up)
