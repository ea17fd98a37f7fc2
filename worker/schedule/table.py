"""SCHEDULES: every schedule by name. The one place to add a schedule to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from worker.errors import ScheduleError
from worker.schedule import generate, zero_bubble
from worker.schedule.action import Action
from worker.schedule.interleaved import interleaved
from worker.schedule.search import zb_auto
from worker.schedule.setting import Setting, Times
from worker.schedule.zb_v import zb_v

Generator = Callable[[int, Setting], Iterator[Action]]
"""A rank's place in the row and the setting -> its Actions."""


@dataclass(frozen=True)
class Schedule:
    """One entry: a generator for each sync_mode it is offered in.

    ``stashes``: under ASP a backward uses the weights of its forward, not the newest. ``is_chunked``: a rank holds
    several virtual stages. ``is_searched``: the order depends on the times, and ``in_flight`` is its memory limit.
    ``keeps``: weight versions before the newest that a forward may ask for. ``splits_backward``: its backwards are an
    INPUT_GRAD and a WEIGHT_GRAD.
    """

    bsp: Generator | None = None
    asp: Generator | None = None
    stashes: bool = True
    is_chunked: bool = False
    is_searched: bool = False
    keeps: int = 0
    splits_backward: bool = False

    @property
    def sync_modes(self) -> tuple[str, ...]:
        """The modes it is offered in."""
        return tuple(mode for mode in ("bsp", "asp") if getattr(self, mode) is not None)


SCHEDULES = {
    "none": Schedule(bsp=generate.one_at_a_time_flush, asp=generate.one_at_a_time_stream),
    "gpipe": Schedule(bsp=generate.gpipe),
    "1f1b": Schedule(bsp=generate.one_f_one_b_flush, asp=generate.one_f_one_b_stream),
    "interleaved": Schedule(bsp=interleaved, is_chunked=True),
    "zb-h1": Schedule(bsp=zero_bubble.zb_h1, splits_backward=True),
    "zb-h2": Schedule(bsp=zero_bubble.zb_h2, splits_backward=True),
    "zb-v": Schedule(bsp=zb_v, is_chunked=True, splits_backward=True),
    "zb-auto": Schedule(bsp=zb_auto, is_searched=True, splits_backward=True),
    "2bw": Schedule(asp=generate.two_versions, keeps=1),
    "accumulate": Schedule(asp=generate.accumulate, stashes=False),
}


def find(name: str) -> Schedule:
    """The schedule called ``name``. Raises ScheduleError with the nearest name."""
    if name in SCHEDULES:
        return SCHEDULES[name]
    near = get_close_matches(name, SCHEDULES, 1)
    guess = f"; did you mean {near[0]}?" if near else ""
    raise ScheduleError(f"no schedule is called {name!r}{guess}", f"known: {', '.join(SCHEDULES)}")


def generator(name: str, sync_mode: str, chunks: int = 1) -> Generator:
    """The generator of a schedule in a sync_mode. Raises ScheduleError where there is none."""
    schedule = find(name)
    if sync_mode not in schedule.sync_modes:
        modes = " or ".join(schedule.sync_modes)
        raise ScheduleError(f"schedule {name} does not run under sync_mode {sync_mode}", f"it needs sync_mode {modes}")
    if chunks > 1 and not schedule.is_chunked:
        message = f"schedule {name} runs one stage per rank, not {chunks} chunks"
        raise ScheduleError(message, "interleaved and zb-v run several")
    found: Generator = getattr(schedule, sync_mode)
    return found


def actions(
    schedule: str,
    sync_mode: str,
    stage: int,
    stages: int,
    minibatches: range,
    in_flight: int | None = None,
    replicas: tuple[int, ...] | None = None,
    *,
    chunks: int = 1,
    per_update: int | None = None,
    times: tuple[Times, ...] | None = None,
    hop: float = 0.0,
) -> Iterator[Action]:
    """The Actions of one rank: over one step under BSP, over the whole stream under ASP.

    ``stage`` is the rank's place among ``stages``; the other arguments are those of Setting.

    Raises:
        ScheduleError: for a schedule that does not exist, or not in this sync_mode, or not in this setting.
    """
    setting = Setting(stages, minibatches, in_flight, replicas, chunks, per_update, times, hop)
    return generator(schedule, sync_mode, chunks)(stage, setting)


def build(schedule: str, sync_mode: str, setting: Setting) -> list[list[Action]]:
    """The Actions of all ranks. Raises ScheduleError as ``actions`` does."""
    of_rank = generator(schedule, sync_mode, setting.chunks)
    return [list(of_rank(rank, setting)) for rank in range(setting.stages)]
