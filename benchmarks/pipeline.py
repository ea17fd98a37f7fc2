"""python -m benchmarks.pipeline: vpipe beside torch.distributed.pipelining, DDP and one process, as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, median
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError

from benchmarks import ranks
from benchmarks.contestants import Entry, contestant
from benchmarks.layers import Workload, encoders, sleepers
from worker.errors import VpipeError

Span = tuple[float, float, float]
"""Of one run on one rank: when it began and ended on the machine's clock, and the CPU seconds it took."""


@dataclass(frozen=True)
class Case:
    """Contestants on one workload, raced in one process group.

    ``repeats``: at most; fewer where another would not end well before the ``deadline``, in seconds, at which ranks are
    killed.
    """

    name: str
    workload: Callable[[], Workload]
    ranks: int
    activation_bytes: int
    entries: tuple[Entry, ...]
    repeats: int
    deadline: float


SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v")
KB, MB = 2**10, 2**20
HURRY = 0.8
"""Share of a deadline after which no repeat may end."""


def bsp(ranks: int, minibatches: int, schedules: Sequence[str] = SCHEDULES) -> list[Entry]:
    """The limit, then vpipe's schedules, each behind its peer; a run is one step."""
    entries = [Entry("limit", "bsp", "none", minibatches, minibatches)]
    for schedule in schedules:
        ours = Entry("vpipe", "bsp", schedule, minibatches, minibatches)
        entries += [Entry("torch", "bsp", ours.peer, minibatches, minibatches), ours]
        if schedule == "1f1b":
            entries.append(replace(ours, in_flight=2 * ranks - 1))
    return entries


def asp(ranks: int, minibatches: int, limit: int) -> list[Entry]:
    """vpipe without a flush over a stream of minibatches; the limit is taken over ``limit`` of them."""
    stream = Entry("vpipe", "asp", "1f1b", minibatches, 1)
    return [Entry("limit", "asp", "none", limit, 1), stream, replace(stream, in_flight=2 * ranks - 1)]


def two_versions(ranks: int, minibatches: int) -> Entry:
    """2BW over about as many minibatches, which must fill whole updates."""
    per_update = 2 * ranks
    return Entry("vpipe", "asp", "2bw", minibatches // per_update * per_update, per_update)


def bare(ranks: int, minibatches: int) -> Entry:
    """The longest stream's actions and messages without a runtime; for layers that only sleep."""
    return Entry("bare", "asp", "1f1b", minibatches, 1, in_flight=2 * ranks - 1)


def compiled(minibatches: int) -> list[Entry]:
    """1F1B with and without ``pipeline.compile``; its limit is not compiled."""
    eager = bsp(2, minibatches, ("1f1b",))[:-1]
    return [*eager, replace(eager[-1], compiles=True)]


def plain(minibatches: int) -> list[Entry]:
    """What a user would do without a pipeline."""
    return [Entry(name, "bsp", "none", minibatches, minibatches) for name in ("ddp", "one-process")]


def cases(quick: bool) -> list[Case]:
    """All cases, or a few of each kind that together take under five minutes on two idle cores."""
    return _quick() if quick else _full()


def _quick() -> list[Case]:
    stream = [*bsp(2, 8, ("1f1b",))[:-1], *asp(2, 16, 8)]
    wide = [*bsp(8, 32, ("1f1b",)), *asp(8, 200, 16), bare(8, 200)]
    return [
        _real("real p2", [*bsp(2, 8, ("1f1b", "zb-h1")), *plain(8)], 2, 90.0),
        _real("real p2 stream", stream, 2, 75.0),
        _sleeping(4, 64 * KB, bsp(4, 16), 3, 35.0),
        _sleeping(4, 4 * MB, bsp(4, 16), 3, 35.0),
        _sleeping(8, MB, wide, 2, 65.0),
    ]


def _full() -> list[Case]:
    stream = [*bsp(2, 16, ("1f1b",)), *asp(2, 200, 200), two_versions(2, 200)]
    return [
        *(_real("real p2", [*bsp(2, count), *plain(count)], 5, 900.0) for count in (8, 16, 32)),
        _real("real p2 stream", stream, 3, 1800.0),
        _real("real p2 compiled", compiled(16), 5, 900.0),
        *(
            _sleeping(ranks, size, [*bsp(ranks, count), *asp(ranks, 200, 32), two_versions(ranks, 200)], 5, 900.0)
            for ranks, count in ((4, 16), (4, 64), (8, 32))
            for size in (64 * KB, MB, 4 * MB)
        ),
    ]


def _real(name: str, entries: Sequence[Entry], repeats: int, deadline: float) -> Case:
    return Case(name, encoders, 2, 8 * 128 * 256 * 4, tuple(entries), repeats, deadline)


def _sleeping(ranks: int, size: int, entries: Sequence[Entry], repeats: int, deadline: float) -> Case:
    return Case(f"sleep p{ranks}", partial(sleepers, ranks, size), ranks, size, tuple(entries), repeats, deadline)


def measure(case: Case) -> Iterator[dict[str, Any]]:
    """One record for each contestant. Raises RankFailure."""
    workload = case.workload()
    entries = [entry for entry in case.entries if is_offered(entry, workload, case.ranks)]

    def main(rank: int) -> list[list[Span]]:
        runs = [contestant(entry, workload, case.ranks, rank) for entry in entries]
        return race(runs, case.repeats, HURRY * case.deadline)

    by_rank = ranks.run(case.ranks, main, case.deadline)
    return records(case, entries, by_rank)


def race(runs: Sequence[Callable[[], None]], repeats: int, seconds: float) -> list[list[Span]]:
    """All runs in turn, every second time backwards; spans by run.

    Once to warm up, once for certain, and again up to ``repeats`` times as long as that will take no more ``seconds``.
    """
    spans: list[list[Span]] = [[] for _ in runs]
    began = time.perf_counter()
    for repeat in range(repeats + 1):
        if repeat > 1 and not _is_agreed((time.perf_counter() - began) * (repeat + 1) / repeat < seconds):
            break
        order = list(range(len(runs)))
        for index in reversed(order) if repeat % 2 else order:
            dist.barrier()
            spans[index].append(_timed(runs[index]))
    return [each[1:] for each in spans]


def _is_agreed(opinion: bool) -> bool:
    """What the first rank thinks."""
    flag = torch.tensor(int(opinion))
    dist.broadcast(flag, 0)
    return bool(flag)


def _timed(run: Callable[[], None]) -> Span:
    began, used = time.perf_counter(), time.process_time()
    run()
    return began, time.perf_counter(), time.process_time() - used


def records(
    case: Case, entries: Sequence[Entry], by_rank: Sequence[Sequence[Sequence[Span]]]
) -> Iterator[dict[str, Any]]:
    """What the spans of all ranks say: efficiency against the limit, and time beside torch's, each repeat by itself."""
    seconds = {entry: _seconds(entry, [spans[i] for spans in by_rank]) for i, entry in enumerate(entries)}
    cpu = {entry: _cpu(entry, [spans[i] for spans in by_rank]) for i, entry in enumerate(entries)}
    limits = {entry.sync_mode: entry for entry in entries if entry.runtime == "limit"}
    peers = {entry.schedule: entry for entry in entries if entry.runtime == "torch"}
    for entry in entries:
        if entry.runtime == "limit":
            continue
        limit, peer = limits[entry.sync_mode], peers.get(entry.peer)
        efficiencies = [best / own for best, own in zip(seconds[limit], seconds[entry], strict=True)]
        ratios = [theirs / own for theirs, own in zip(seconds[peer], seconds[entry], strict=True)] if peer else []
        yield {
            "case": case.name,
            "runtime": entry.runtime,
            "sync_mode": entry.sync_mode,
            "schedule": entry.schedule,
            "stages": entry.plan(case.workload(), case.ranks).stages,
            "minibatches": entry.minibatches,
            "per_update": entry.per_update,
            "in_flight": entry.in_flight,
            "compile": entry.compiles,
            "activation_bytes": case.activation_bytes,
            "efficiency": round(median(efficiencies), 4),
            "ratio_to_torch": round(median(ratios), 4) if ratios else None,
            "spread": round(max(efficiencies) - min(efficiencies), 4),
            "ratio_spread": round(max(ratios) - min(ratios), 4) if ratios else None,
            "milliseconds": round(1e3 * median(seconds[entry]), 3),
            "overhead_cpu_milliseconds": round(1e3 * (median(cpu[entry]) - median(cpu[limit])), 3),
            "repeats": len(efficiencies),
        }


def _seconds(entry: Entry, by_rank: Sequence[Sequence[Span]]) -> list[float]:
    """Per minibatch, for each repeat: from the first rank's start to the last one's end."""
    return [
        (max(end for _, end, _ in spans) - min(start for start, _, _ in spans)) / entry.minibatches
        for spans in zip(*by_rank, strict=True)
    ]


def _cpu(entry: Entry, by_rank: Sequence[Sequence[Span]]) -> list[float]:
    """Per minibatch and rank, for each repeat."""
    return [mean(used for _, _, used in spans) / entry.minibatches for spans in zip(*by_rank, strict=True)]


def is_offered(entry: Entry, workload: Workload, ranks: int) -> bool:
    """Whether vpipe takes the job of ``entry``; says so where it does not."""
    if entry.runtime == "vpipe":
        try:
            entry.job(workload, ranks)
        except (ValidationError, VpipeError) as error:
            note(f"left out: {entry.sync_mode} {entry.schedule} on {ranks} ranks: {error}")
            return False
    return True


def longer(case: Case, minibatches: int) -> Case:
    """The same case with streams of so many ``minibatches``, and more time in proportion."""

    def stretched(entry: Entry) -> Entry:
        is_stream = entry.per_update == 1 and entry.runtime != "limit"
        return replace(entry, minibatches=minibatches) if is_stream else entry

    entries = tuple(map(stretched, case.entries))
    before, after = (sum(entry.minibatches for entry in each) for each in (case.entries, entries))
    return replace(case, entries=entries, deadline=case.deadline * max(1.0, after / before))


def note(text: str) -> None:
    """For people: standard output is for records."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the records of all cases as they come; 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under five minutes")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this")
    parser.add_argument("--bytes", type=int, metavar="N", help="cases whose activations have so many bytes")
    parser.add_argument("--repeats", type=int, metavar="N", help="in place of a case's own, with as much more time")
    parser.add_argument("--stream", type=int, metavar="N", help="minibatches of streams, with as much more time")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    failed = False
    for case in cases(chosen.quick):
        if chosen.only not in case.name or chosen.bytes not in (None, case.activation_bytes):
            continue
        if chosen.stream:
            case = longer(case, chosen.stream)
        if chosen.repeats:
            deadline = case.deadline * max(1.0, chosen.repeats / case.repeats)
            case = replace(case, repeats=chosen.repeats, deadline=deadline)
        try:
            for record in measure(case):
                print(json.dumps(record), flush=True)
        except ranks.RankFailure as error:
            note(f"{case.name}, {case.activation_bytes} bytes: {error}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
