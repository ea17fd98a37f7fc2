"""The evaluations of a run, as its events tell them."""

from __future__ import annotations

from pydantic import ValidationError

from worker.spec.files import RunFiles, read_events
from worker.spec.records import Evaluation


def all_of(files: RunFiles) -> list[Evaluation]:
    """Every evaluation, in order; one that another version of vpipe wrote in its own way is passed over."""
    found = []
    for event in read_events(files.events):
        if event["event"] == "evaluation":
            try:
                found.append(Evaluation.model_validate({key: event.get(key) for key in Evaluation.model_fields}))
            except ValidationError:
                continue
    return found


def newest(files: RunFiles) -> Evaluation | None:
    """The last evaluation, if there is any."""
    return next(reversed(all_of(files)), None)
