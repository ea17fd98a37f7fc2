"""python -m benchmarks.explain: what the time beyond the limit goes into, measured action by action, as JSON lines.

The limit is taken half before and half after each run of vpipe, so that a machine that slows down does so for both.
Every action of vpipe is timed with what it sends and waits for inside, and the schedule is then walked again on paper
with these times (``worker.schedule.walk``), first with computing alone, then with everything a rank did itself. The
steps from the limit to the measured time add up exactly:

- ``compute``: the same layers and updates take longer than in the limit. Caches and memory are shared with what else
  runs, and the stash copies the weights once per update.
- ``pipeline``: fill, drain and waiting for a neighbour whose minibatch took longer, with hops that take no time.
- ``send`` and ``between``: copying out and waking the other rank; Python between two actions.
- ``hop``: from the end of a send to the moment that the receiver runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from benchmarks import ranks
from benchmarks.contestants import Entry, contestant
from benchmarks.layers import Workload, encoders, sleepers
from worker import trace
from worker.executor import NAMES
from worker.schedule import Action
from worker.schedule.walk import walk

KINDS = {name: kind for kind, name in NAMES.items()}
NANO = 1e-9


class Done(NamedTuple):
    """An action of one rank: seconds from its begin to its end, and of these in sends and in waiting."""

    action: Action
    begin: float
    end: float
    sends: float
    waits: float

    @property
    def compute(self) -> float:
        """Seconds that are the layers', the loss's and the update's own."""
        return self.end - self.begin - self.sends - self.waits


@dataclass(frozen=True)
class Case:
    """One workload under one schedule."""

    name: str
    workload: Callable[[], Workload]
    ranks: int
    entry: Entry
    deadline: float


def cases(quick: bool) -> list[Case]:
    """Real compute on two ranks; sleeping where there are more ranks than cores."""
    stream = Entry("vpipe", "asp", "1f1b", 40 if quick else 200, 1)
    step = Entry("vpipe", "bsp", "1f1b", 8, 8)
    small, large = partial(sleepers, 4, 2**16), partial(sleepers, 8, 2**20)
    return [
        Case("real p2 asp", encoders, 2, stream, 240.0 if quick else 1800.0),
        Case("real p2 asp deep", encoders, 2, replace(stream, in_flight=3), 240.0 if quick else 1800.0),
        Case("real p2 bsp", encoders, 2, step, 120.0),
        Case("sleep p4 bsp 64 KiB", small, 4, replace(step, minibatches=16, per_update=16), 60.0),
        Case("sleep p8 asp 1 MiB", large, 8, replace(stream, in_flight=15), 120.0),
    ]


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """The steps from the limit to the measured time, in milliseconds per minibatch. Raises RankFailure."""
    workload = case.workload()
    whole, updates = case.entry.minibatches, case.entry.per_update
    bound = replace(case.entry, runtime="limit", schedule="none", in_flight=None, minibatches=max(updates, whole // 2))
    warming = [replace(entry, minibatches=max(updates, 8)) for entry in (bound, case.entry)]

    def main(rank: int) -> list[tuple[float, float, list[list[Any]]]]:
        for entry in warming:
            contestant(entry, workload, case.ranks, rank)()
        alone, ours = (contestant(entry, workload, case.ranks, rank) for entry in (bound, case.entry))
        if whole == updates:
            ours()  # the first step is not recorded; of a stream it is the first minibatch
        share = whole / 2 / bound.minibatches
        return [_turn(alone, ours, share) for _ in range(repeats)]

    by_rank = ranks.run(case.ranks, main, case.deadline)
    turns = [explain(turn, case.entry.minibatches) for turn in zip(*by_rank, strict=True)]
    record = {name: round(median(turn[name] for turn in turns), 3) for name in turns[0]}
    share = round(median(turn["limit"] / turn["measured"] for turn in turns), 4)
    return {"case": case.name, "minibatches": case.entry.minibatches, **record, "efficiency": share, "repeats": repeats}


def _turn(alone: Callable[[], None], ours: Callable[[], None], share: float) -> tuple[float, float, list[list[Any]]]:
    """Seconds of the limit, seconds of vpipe, and the spans of vpipe; ``share`` of the limit's counts, twice."""
    before = _timed(alone)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        trace.open_at(path, {}, every=1, window=1)
        seconds = _timed(ours)
        trace.close()
        return (
            share * (before + _timed(alone)),
            seconds,
            [json.loads(line) for line in path.read_text().splitlines()[1:]],
        )


def _timed(run: Callable[[], None]) -> float:
    dist.barrier()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def explain(turn: Sequence[tuple[float, float, list[list[Any]]]], minibatches: int) -> dict[str, float]:
    """Milliseconds per minibatch: from the limit to what was measured."""
    done = [actions(spans) for _, _, spans in turn]
    limit = max(seconds for seconds, _, _ in turn)
    compute = max(sum(each.compute for each in of_rank) for of_rank in done)
    coupled = _makespan(done, {each.action: each.compute for of_rank in done for each in of_rank})
    sending = _makespan(done, {each.action: each.compute + each.sends for of_rank in done for each in of_rank})
    working = _makespan(done, _with_gaps(done))
    measured = max(seconds for _, seconds, _ in turn)
    steps = {
        "limit": limit,
        "compute": compute - limit,
        "pipeline": coupled - compute,
        "send": sending - coupled,
        "between": working - sending,
        "hop": measured - working,
        "measured": measured,
    }
    return {name: 1e3 * seconds / minibatches for name, seconds in steps.items()}


def actions(spans: Iterable[Sequence[Any]]) -> list[Done]:
    """A rank's actions in order. Spans end in the order given, so what an action did inside comes before it."""
    done: list[Done] = []
    sends = waits = 0.0
    for kind, _, begin, end, stage, minibatch, version in spans:
        if kind in KINDS:
            done.append(Done(Action(stage, KINDS[kind], minibatch, version), begin * NANO, end * NANO, sends, waits))
            sends = waits = 0.0
        elif kind == "send":
            sends += (end - begin) * NANO
        elif kind in ("receive", "send wait", "sum"):
            waits += (end - begin) * NANO
    return done


def _with_gaps(done: Sequence[Sequence[Done]]) -> dict[Action, float]:
    """All that a rank did itself, the time since its action before included."""
    times: dict[Action, float] = {}
    for of_rank in done:
        ended = of_rank[0].begin
        for each in of_rank:
            times[each.action] = each.begin - ended + each.compute + each.sends
            ended = each.end
    return times


def _makespan(done: Sequence[Sequence[Done]], times: Mapping[Action, float]) -> float:
    spans = walk([[each.action for each in of_rank] for of_rank in done], times.__getitem__)
    return max(of_rank[-1].end for of_rank in spans)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a record for each case; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explain", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 minibatches of a stream instead of 200, two repeats")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this")
    parser.add_argument("--repeats", type=int, default=0, metavar="N", help="default: five, or two")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    repeats, failed = chosen.repeats or (2 if chosen.quick else 5), False
    for case in (case for case in cases(chosen.quick) if chosen.only in case.name):
        try:
            print(json.dumps(measure(case, repeats)), flush=True)
        except ranks.RankFailure as error:
            print(f"{case.name}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
