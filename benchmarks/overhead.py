"""python -m benchmarks.overhead: what the runtime itself costs a rank, by how long its layers leave it idle.

Beside it, as runtime ``messages``, what the minibatch's two messages alone cost: one each way, by the same means.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean, median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import ranks
from benchmarks.contestants import CPU
from benchmarks.layers import sleepers
from benchmarks.pipeline import KB, Case, asp, bare, bsp, measure, note
from worker.communication import Address, Communicator, Expected
from worker.data.base import TensorSpec
from worker.trace import Stopwatch

FIELDS = (
    "case",
    "runtime",
    "sync_mode",
    "schedule",
    "minibatches",
    "overhead_cpu_milliseconds",
    "milliseconds",
    "repeats",
)
SLEEPS = (0.0, 0.001, 0.010)
"""Seconds asleep in the forward, the input gradient and the weight gradient each."""
OFTENER = 10
"""Repeats, for each one asked for, of what does not sleep: it is short, and its differences are small."""


def cases(sleep: float, minibatches: int, repeats: int) -> Iterator[Case]:
    """1F1B with and without a flush, the flush once for all minibatches: on one rank without messages, and on two.

    On two also without a runtime: the actions, the updates and the messages of the stream alone.
    """
    for count in (1, 2):
        entries = [*bsp(count, minibatches, ("1f1b",))[:-1], *asp(count, minibatches, minibatches)[:-1]]
        entries.append(replace(bare(count, minibatches), in_flight=None))
        chosen = tuple(entry for entry in entries if count > 1 or entry.runtime not in ("torch", "bare"))
        workload = partial(sleepers, count, 64 * KB, sleep, sleep, sleep)
        yield Case(f"{_name(sleep)}, p{count}", workload, count, 64 * KB, chosen, repeats, 120.0)


def messages(sleep: float, minibatches: int, repeats: int) -> dict[str, Any]:
    """CPU per minibatch and rank of a tensor sent there and one sent back, ranks asleep between. Raises RankFailure."""

    def turn(rank: int, wire: Communicator, first: int) -> None:
        tensor, spec = torch.ones(1, 16 * KB), TensorSpec((1, 16 * KB), torch.float32)
        for number in range(first, first + minibatches):
            there, back = Address("there", 0, 1, number), Address("back", 1, 0, number)
            if rank == 0:
                wire.send(tensor, there)
            wire.post(Expected(back if rank == 0 else there, spec))()
            time.sleep(3 * sleep)
            if rank == 1:
                wire.send(tensor, back)
        wire.finish()

    def main(rank: int) -> list[float]:
        wire = Communicator(["there", "back"], CPU, 60.0, Stopwatch(), window=2)
        wire.connect()
        used = []
        for repeat in range(repeats + 1):
            dist.barrier()
            began = time.process_time()
            turn(rank, wire, repeat * minibatches)
            used.append(1e3 * (time.process_time() - began) / minibatches)
        return used[1:]

    by_rank = ranks.run(2, main, 120.0)
    cost = round(median(mean(each) for each in zip(*by_rank, strict=True)), 3)
    known = {"runtime": "messages", "minibatches": minibatches, "overhead_cpu_milliseconds": cost, "repeats": repeats}
    return {field: known.get(field) for field in FIELDS} | {"case": f"{_name(sleep)}, p2"}


def _name(sleep: float) -> str:
    return f"sleep {1e3 * sleep:g} ms"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the records of all cases; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--minibatches", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    failed = False
    for sleep in SLEEPS:
        try:
            repeats = chosen.repeats if sleep else OFTENER * chosen.repeats
            print(json.dumps(messages(sleep, chosen.minibatches, repeats)), flush=True)
            for case in cases(sleep, chosen.minibatches, repeats):
                for record in measure(case):
                    print(json.dumps({field: record[field] for field in FIELDS}), flush=True)
        except ranks.RankFailure as error:
            note(f"{_name(sleep)}: {error}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
