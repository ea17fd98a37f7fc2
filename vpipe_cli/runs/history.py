"""Which runs of this machine were asked for: by name, state and date."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from itertools import islice
from typing import get_args

from vpipe_cli.runs.logs import moment
from vpipe_cli.runs.outcome import Outcome, outcome
from vpipe_cli.runs.store import Run, list_runs
from worker.errors import UsageError
from worker.spec.records import State


@dataclass(frozen=True)
class Wanted:
    """Conditions on a run, all of which must hold. ``since`` and ``until`` are Unix times of its beginning."""

    name: str | None = None
    state: str | None = None
    since: float | None = None
    until: float | None = None

    @classmethod
    def of(cls, name: str | None, state: str | None, since: str | None, until: str | None) -> Wanted:
        """As typed. Raises UsageError."""
        states, bounds = get_args(State), {"since": since, "until": until}
        if state is not None and state not in states:
            raise UsageError(f"--state {state}: no such state", f"there are {', '.join(states)}")
        times = [None if text is None else _time(text, f"--{option}") for option, text in bounds.items()]
        return cls(name, state, *times)

    def newest(self, count: int | None) -> tuple[list[Outcome], int]:
        """The newest runs that are wanted, at most ``count``; and how many older ones were not looked at any more."""
        candidates = [run for run in list_runs() if self._may_be(run)]
        looked = iter(candidates)
        found = list(islice(self._in_state(looked), count))
        return found, len(list(looked))

    def _may_be(self, run: Run) -> bool:
        named = self.name is None or fnmatchcase(run.name, self.name) or fnmatchcase(run.id, self.name)
        begun = self.since is None or run.started >= self.since
        return named and begun and (self.until is None or run.started < self.until)

    def _in_state(self, runs: Iterator[Run]) -> Iterator[Outcome]:
        return (stands for stands in map(outcome, runs) if self.state is None or stands.state == self.state)


def _time(text: str, option: str) -> float:
    stamp = moment(text, datetime.now(timezone.utc), option)
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
