"""From what was typed to a sweep's folder: the definition, what of it is new, and what another sweep has done."""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpipe_cli import config
from vpipe_cli.render.text import numbers
from vpipe_cli.runs import store as runs
from vpipe_cli.sweep import grid, store
from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.grammar import Axis
from vpipe_cli.sweep.records import AxisRecord, Definition
from vpipe_cli.sweep.trials import Base, Expanded, Grid, expand
from worker.errors import RunNotFound, UsageError
from worker.spec.files import append_event

MOST_TRIALS = 100_000


@dataclass(frozen=True)
class Asked:
    """All that was typed."""

    base: Base
    grid: Grid
    seed: int = 1
    warmup: int | None = None
    fail_fast: bool = False
    optimize: str | None = None
    budget: int | None = None
    command: str = ""


def base_of(cluster: Path | None, steps: int | None) -> Base:
    """The file to vary: the one named, else ./cluster.yml, else that of the newest run.

    Raises:
        UsageError: there is none.
    """
    more = [f"run.steps={steps}"] if steps else []
    path = cluster or Path(config.DEFAULT)
    if cluster is not None or path.exists():
        config.read(path)  # that it is not there is better said now than of every trial
        return Base(path, str(path), path.absolute().parent, more)
    try:
        files = runs.find().files
        request = json.loads(files.request.read_bytes())
    except (RunNotFound, OSError, ValueError):
        hint = "`vpipe init` writes one; -c names another place"
        raise UsageError(f"there is no {config.DEFAULT} in this folder, and no run to take it from", hint) from None
    return Base(files.cluster, str(files.cluster), Path(request["folder"]), [*request["overrides"], *more])


def repeated(axes: list[Axis], repeat: int, seed: int) -> list[Axis]:
    """The axes with one more that gives each trial as many seeds. Raises UsageError if the seed is swept already."""
    if repeat == 1:
        return axes
    if any(axis.key == "run.seed" for axis in axes):
        raise UsageError("--repeat gives every repetition another run.seed, which is swept already", "leave one out")
    return [*axes, Axis("run.seed", "run.seed", tuple(str(seed + number) for number in range(repeat)))]


def size(asked: Grid) -> int:
    """How many points the grid has, before ``--where``. Raises UsageError if they are none, or too many."""
    points = grid.count(asked.axes, asked.zipped)
    if points > MOST_TRIALS:
        raise UsageError(f"the grid has {points:,} trials; at most {MOST_TRIALS:,}", "give fewer values")
    return points


def define(asked: Asked) -> tuple[Definition, Expanded]:
    """The sweep as it would be written; every trial is checked. Raises what ``expand`` raises."""
    expanded = expand(asked.base, asked.grid)
    order = [trial.identity for trial in expanded.trials]
    random.Random(asked.seed).shuffle(order)
    axes = [AxisRecord(name=axis.name, key=axis.key) for axis in asked.grid.axes]
    definition = Definition(
        sweep=store.id_of(expanded.name, *_typed(asked)),
        name=expanded.name,
        created=time.time(),
        cwd=os.getcwd(),
        path=asked.base.shown,
        folder=str(asked.base.folder),
        command=asked.command,
        axes=axes,
        trials=expanded.trials,
        order=order,
        choice=expanded.choice,
        parallel=asked.grid.parallel,
        lanes=expanded.lanes,
        array=expanded.array and asked.optimize is None,
        warmup=asked.warmup,
        fail_fast=asked.fail_fast,
        seed=asked.seed,
        optimize=asked.optimize,
        budget=asked.budget,
    )
    return definition, expanded


def _typed(asked: Asked) -> list[Any]:
    axes = [[axis.key, list(axis.values)] for axis in asked.grid.axes]
    where = asked.grid.where.text if asked.grid.where else ""
    return [
        str(asked.base.path.absolute()),
        asked.base.overrides,
        axes,
        asked.grid.zipped,
        where,
        asked.grid.parallel > 1,
        asked.optimize,
    ]


def news(files: SweepFiles, definition: Definition, cluster: str) -> list[str]:
    """What is to be said of a sweep that was there before: how much is done, and which trials are new and why."""
    before = store.read(files)
    if before is None:
        return []
    said = store.said(files)
    done = sum(said.is_done(trial.identity) for trial in definition.trials)
    former = {trial.identity for trial in before.trials}
    new = [trial.number for trial in definition.trials if trial.identity not in former]
    lines = []
    if new:
        changed = files.cluster.read_text() != cluster
        what = "cluster.yml has changed" if changed else "vpipe's or the model's code, or the image, has changed"
        which = "all trials" if len(new) == len(definition.trials) else f"trial {numbers(new)}"
        lines.append(f"{what} since this sweep was typed; new: {which}")
    total = len(definition.trials)
    left = total - done
    lines.append(f"{done} of {total} trials have their results; {f'{left} to run' if left else 'none is left to run'}")
    return lines


def take_over(files: SweepFiles, definition: Definition) -> int:
    """Write down the results that other sweeps have of these trials; how many."""
    said = store.said(files)
    rows = store.finished_elsewhere(definition)
    found = 0
    for trial in definition.trials:
        row = rows.get(trial.identity)
        if row is None or said.is_done(trial.identity) or trial.identity in said.open():
            continue
        values = row.model_copy(update={"number": trial.number}).model_dump(mode="json", exclude_defaults=True)
        append_event(files.events, {"time": time.time(), "event": "end", "row": values})
        found += 1
    return found


def same_trials(one: Definition, other: Definition) -> bool:
    """Whether both run the same trials."""
    return {trial.identity for trial in one.trials} == {trial.identity for trial in other.trials}
