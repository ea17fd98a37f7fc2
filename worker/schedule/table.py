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

Generator = Callable[[int, Setting], Iterator[Action]]
"""A rank's place in the row and the setting -> its Actions."""


@dataclass(frozen=True)
class Schedule:
    """One entry: a generator for each sync_mode it is offered in.

    ``stashes``: under ASP a backward uses the weights of its forward, not the newest. ``is_chunked``: a rank holds
    several virtual stages.
    """

    bsp: Generator | None = None
    asp: Generator | None = None
    stashes: bool = True
    is_chunked: bool = False

    @property
    def sync_modes(self) -> tuple[str, ...]:
        """The modes it is offered in."""
        return tuple(mode for mode in ("bsp", "asp") if getattr(self, mode) is not None)


SCHEDULES = {
    "none": Schedule(bsp=generate.one_at_a_time_flush, asp=generate.one_at_a_time_stream),
    "gpipe": Schedule(bsp=generate.gpipe),
    "1f1b": Schedule(bsp=generate.one_f_one_b_flush, asp=generate.one_f_one_b_stream),
    "interleaved": Schedule(bsp=interleaved, is_chunked=True),
    "zb-h1": Schedule(bsp=zero_bubble.zb_h1),
    "zb-h2": Schedule(bsp=zero_bubble.zb_h2),
    "zb-auto": Schedule(bsp=zb_auto),
    "2bw": Schedule(asp=generate.two_versions),
    "accumulate": Schedule(asp=generate.accumulate, stashes=False),
}


def find(name: str) -> Schedule:
    """The schedule called ``name``. Raises ScheduleError with the nearest name."""
    if name in SCHEDULES:
        return SCHEDULES[name]
    near = get_close_matches(name, SCHEDULES, 1)
    guess = f"; did you mean {near[0]}?" if near else ""
    raise ScheduleError(f"no schedule is called {name!r}{guess}", f"known: {', '.join(SCHEDULES)}")


def generator(name: str, sync_mode: str) -> Generator:
    """The generator of a schedule in a sync_mode. Raises ScheduleError where there is none."""
    modes = find(name).sync_modes
    if sync_mode not in modes:
        raise ScheduleError(f"schedule {name} does not run under sync_mode {sync_mode}", f"it needs {modes[0]}")
    found: Generator = getattr(SCHEDULES[name], sync_mode)
    return found


def actions(
    schedule: str,
    sync_mode: str,
    stage: int,
    stages: int,
    minibatches: range,
    in_flight: int | None = None,
    warmup: int | None = None,
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
    setting = Setting(stages, minibatches, in_flight, warmup, chunks, per_update, times, hop)
    return generator(schedule, sync_mode)(stage, setting)


def build(schedule: str, sync_mode: str, setting: Setting) -> list[list[Action]]:
    """The Actions of all ranks. Raises ScheduleError as ``actions`` does."""
    of_rank = generator(schedule, sync_mode)
    return [list(of_rank(rank, setting)) for rank in range(setting.stages)]
