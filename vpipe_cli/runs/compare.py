"""Two runs side by side: what was asked of them, how they were planned, where they ran, what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.notes import notes
from vpipe_cli.runs.outcome import Outcome, outcome
from vpipe_cli.runs.store import Run

Value = Any
"""What JSON can hold; None where there is nothing."""


@dataclass(frozen=True)
class Change:
    """One thing that differs; ``part`` is config, plan, launch or result, ``share`` how much more b is than a."""

    part: str
    key: str
    a: Value
    b: Value
    share: float | None = None


def compare(a: Run, b: Run) -> list[Change]:
    """Everything that differs between two runs.

    Raises:
        NotFinished: one of them never got as far as being planned.
    """
    left, right = _facts(a), _facts(b)
    return [
        Change(part, key, one, other, _share(part, one, other))
        for part in left
        for key in dict.fromkeys([*left[part], *right[part]])
        if (one := left[part].get(key)) != (other := right[part].get(key))
    ]


def _facts(run: Run) -> dict[str, dict[str, Value]]:
    """All that can be compared of a run: by part, then by dotted key."""
    job, stands = placed_job(run), outcome(run)
    places = {f"rank {rank.rank}": f"{rank.host} {rank.device}, {rank.threads} threads" for rank in job.ranks}
    plan = job.plan.model_dump(mode="json", exclude={"predicted"})
    return {
        "config": dict(flat(job.spec.model_dump(mode="json"))),
        "plan": dict(flat(plan)),
        "launch": {**_code(run), **places},
        "result": {"state": stands.state, "steps": stands.step, **_numbers(stands)},
        "notes": {"note": "; ".join(note.text for note in notes(run)) or None},
    }


def _code(run: Run) -> dict[str, Value]:
    try:
        launch = json.loads(run.files.launch.read_bytes())
        return {"code": launch.get("code") or None, "python": launch["ranks"][0]["argv"][0]}
    except (OSError, ValueError, KeyError, IndexError):
        return {}


def _numbers(stands: Outcome) -> dict[str, Value]:
    result = stands.result
    if result is None:
        return {"loss": stands.loss, "failure": stands.failure.cause if stands.failure else None}
    stages = result.stages
    return {
        "loss": result.loss,
        "samples_per_second": result.samples_per_second,
        "seconds": result.seconds,
        "peak_memory_bytes": max(stage.peak_memory_bytes for stage in stages),
        "idle_share": sum(stage.idle_share for stage in stages) / len(stages),
        "weights_sha256": result.weights_sha256,
    }


def flat(value: Mapping[str, Value], prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Nested mappings as dotted keys."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield prefix + key, inner


def _share(part: str, one: Value, other: Value) -> float | None:
    numbers = part == "result" and isinstance(one, int | float) and isinstance(other, int | float)
    return other / one - 1 if numbers and one else None
