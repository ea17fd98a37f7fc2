"""From what the user asks of `vpipe simulate` to a checked, timed schedule, and that as a document or as text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vpipe_cli import timeline
from worker.errors import UsageError
from worker.planner.simulate import Simulation, simulate
from worker.schedule import Action, Setting, Times, build, find, from_csv, peak_versions, validate

MOST_PASSES = 100_000
"""Stages times minibatches: more would keep the user waiting."""

LARGEST_TIME = 1e12

KEYS = ("forward", "input_grad", "weight_grad", "update")


@dataclass(frozen=True)
class Request:
    """The options of `vpipe simulate`; None where one is not given. ``times`` in the order of KEYS."""

    schedule: str
    sync_mode: str | None = None
    stages: int | None = None
    minibatches: int | None = None
    times: tuple[float | None, ...] = (None,) * len(KEYS)
    stage_times: Path | None = None
    hop: float = 0.0
    chunks: int | None = None
    in_flight: int | None = None
    per_update: int | None = None
    memory_limit: float | None = None
    weight_share: float = 1.0


@dataclass(frozen=True)
class Simulated:
    """A schedule and what it takes; ``versions`` are the most versions of its weights that each rank holds."""

    schedule: str
    sync_mode: str | None
    minibatches: int
    ranks: list[list[Action]]
    versions: list[int]
    simulation: Simulation


def run(request: Request) -> Simulated:
    """Build, check and time what is asked for.

    Raises:
        UsageError: for options that do not fit, or a file that cannot be read.
        ScheduleError: for a schedule that does not exist, cannot run, or holds more than ``memory_limit``.
    """
    _number("--hop", request.hop)
    if request.memory_limit is not None and _number("--memory-limit", request.memory_limit) < 1:
        raise UsageError(f"--memory-limit is {request.memory_limit:g}; not even one minibatch fits")
    if _number("--weight-share", request.weight_share) > 1:
        raise UsageError(f"--weight-share is {request.weight_share:g}; it is a share, from 0 to 1")
    times = _times(request)
    if Path(request.schedule).suffix == ".csv":
        mode, stashes, ranks = None, True, _from_file(request)
    else:
        mode = request.sync_mode or find(request.schedule).sync_modes[0]
        stashes = find(request.schedule).stashes
        ranks = build(request.schedule, mode, _setting(request, times))
    validate(ranks, in_flight=request.memory_limit, weight_share=request.weight_share, stashes=stashes)
    simulation = simulate(ranks, times, request.hop)
    minibatches = len({action.minibatch for actions in ranks for action in actions})
    versions = [peak_versions(actions, stashes) for actions in ranks]
    return Simulated(request.schedule, mode, minibatches, ranks, versions, simulation)


def document(simulated: Simulated) -> str:
    """The result as JSON."""
    simulation = simulated.simulation
    return json.dumps(
        {
            "schema": 1,
            "schedule": simulated.schedule,
            "sync_mode": simulated.sync_mode,
            "minibatches": simulated.minibatches,
            "makespan": simulation.makespan,
            "cost": simulation.cost,
            "bubble_rate": simulation.bubble_rate,
            "peak_in_flight": [report.peak_in_flight for report in simulation.ranks],
            "stages": [
                {
                    "rank": rank,
                    "stages": report.stages,
                    "span": report.span,
                    "busy": report.busy,
                    "idle": report.idle,
                    "peak_in_flight": report.peak_in_flight,
                    "versions": versions,
                }
                for rank, (report, versions) in enumerate(zip(simulation.ranks, simulated.versions, strict=True))
            ],
        }
    )


def describe(simulated: Simulated, width: int = 80) -> str:
    """The result as text: the numbers, a line for each rank, the timeline."""
    simulation = simulated.simulation
    mode = f" under {simulated.sync_mode}" if simulated.sync_mode else ""
    lines = [
        f"{simulated.schedule}{mode}: {len(simulated.ranks)} stages, {simulated.minibatches} minibatches",
        f"makespan {simulation.makespan:.6g}, longest stage {simulation.cost:.6g}, "
        f"bubble rate {simulation.bubble_rate:.4f}",
        "",
        f"{'stage':>5} {'span':>12} {'busy':>12} {'idle':>12} {'in flight':>10} {'versions':>9}",
    ]
    for rank, (report, versions) in enumerate(zip(simulation.ranks, simulated.versions, strict=True)):
        numbers = " ".join(f"{value:>12.6g}" for value in (report.span, report.busy, report.idle))
        lines.append(f"{rank:>5} {numbers} {report.peak_in_flight:>10g} {versions:>9}")
    return "\n".join([*lines, "", timeline.text(simulation.spans, width)])


def _setting(request: Request, times: Times | list[Times]) -> Setting:
    stages = len(times) if request.stages is None and isinstance(times, list) else request.stages
    if stages is None or request.minibatches is None:
        raise UsageError("a schedule by name needs --stages and --minibatches", "add --stages 4 --minibatches 8")
    if request.minibatches < 1:
        raise UsageError(f"--minibatches is {request.minibatches}; it must be at least 1")
    schedule = find(request.schedule)
    chunks = request.chunks if request.chunks is not None else 2 if schedule.is_chunked else 1
    if stages * request.minibatches * chunks > MOST_PASSES:
        raise UsageError(f"{stages} stages of {request.minibatches} minibatches are more than this can simulate")
    in_flight = request.in_flight
    if in_flight is None and schedule.is_searched and request.memory_limit is not None:
        in_flight = int(request.memory_limit)
    return Setting(
        stages=stages,
        minibatches=range(request.minibatches),
        in_flight=in_flight,
        chunks=chunks,
        per_update=request.per_update,
        times=tuple(times) if isinstance(times, list) else (times,) * stages,
        hop=request.hop,
        weight_share=request.weight_share,
    )


def _from_file(request: Request) -> list[list[Action]]:
    """The schedule in a CSV file, where the options about generating one mean nothing."""
    given = ("sync_mode", "stages", "minibatches", "chunks", "in_flight", "per_update")
    for name in given:
        if getattr(request, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} means nothing to a schedule read from {request.schedule}")
    ranks = from_csv(_read(Path(request.schedule), "--schedule"))
    if not any(ranks):
        raise UsageError(f"{request.schedule} holds no schedule")
    return ranks


def _times(request: Request) -> Times | list[Times]:
    """The same times for all stages, or one each from the file."""
    given = {key: value for key, value in zip(KEYS, request.times, strict=True) if value is not None}
    for key, value in given.items():
        _number(f"--{key.replace('_', '-')}", value)
    if request.stage_times is None:
        return Times(**given)
    if given:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} and --stage-times both give times: use one of them")
    stages = _stage_times(request.stage_times)
    if request.stages not in (None, len(stages)) and request.stages * (request.chunks or 1) != len(stages):
        raise UsageError(f"{request.stage_times} has times for {len(stages)} stages, but --stages is {request.stages}")
    return stages


def _stage_times(path: Path) -> list[Times]:
    """Times of each stage from a JSON list of objects with KEYS."""
    try:
        entries = json.loads(_read(path, "--stage-times"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{path} must be a list of objects, one for each stage", f"keys: {', '.join(KEYS)}")
    return [_entry(path, number, entry) for number, entry in enumerate(entries)]


def _entry(path: Path, number: int, entry: dict[str, object]) -> Times:
    where = f"{path}: stage {number}"
    unknown = sorted(entry.keys() - set(KEYS))
    missing = [key for key in KEYS[:3] if key not in entry]
    if unknown or missing:
        wrong = f"has an unknown key {unknown[0]!r}" if unknown else f"lacks {missing[0]}"
        raise UsageError(f"{where} {wrong}", f"keys: {', '.join(KEYS)}; update may be left out")
    return Times(**{key: _number(f"{where}: {key}", value) for key, value in entry.items()})


def _number(name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST_TIME:
        return value
    raise UsageError(f"{name} is {str(value)[:40]}; it must be a number from 0 to {LARGEST_TIME:g}")


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise UsageError(f"{option}: cannot read {path}: {reason}") from None
