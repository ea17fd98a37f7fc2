"""How long it took to notice an injury, to clean up and to go on: read from events and metrics, no stopwatch."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.faults.arena import Trial
from worker.spec.records import FINAL


@dataclass(frozen=True)
class Times:
    """Seconds; None where it does not apply.

    ``detect``: from the injury to the first thing hostd says of it. ``clean``: from there until nothing of the attempt
    is left. ``resume``: from there to the end of the next attempt's first step.
    """

    detect: float | None = None
    clean: float | None = None
    resume: float | None = None


def measure(trial: Trial) -> list[Times]:
    """One for every injury after which hostd ended an attempt."""
    found, injuries = [], [when for when, _ in trial.injuries]
    ends = [event for event in trial.events() if event["state"] == "restarting" or event["state"] in FINAL]
    for number, (injury, end) in enumerate(zip(injuries, ends, strict=False)):
        heard = [e["time"] for kind in ("rank-exit", "host-lost") for e in trial.events(kind) if e["time"] >= injury]
        first = min([*heard, end["time"]])
        resumed = first_step(trial, number + 2) if end["state"] == "restarting" else None
        found.append(Times(first - injury, end["time"] - first, resumed - end["time"] if resumed else None))
    return found


def first_step(trial: Trial, attempt: int) -> float | None:
    """When the last rank ended the first step of an attempt after the first, by its own metrics."""
    begins = [event["time"] for event in trial.events("rank-start") if event["attempt"] == attempt]
    path = trial.files.metrics(trial.arena.ranks - 1)
    if not begins or not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return next((line["time"] for line in lines if line["time"] > begins[0]), None)
