"""How far the clocks of the ranks' machines are apart, so that spans of several can be put on one time line."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from worker.door import machine

ROUNDS = 8


def offset_to_first(rank: int, ranks: int) -> tuple[int, int]:
    """Nanoseconds that rank 0's monotonic clock is ahead of this rank's, and the most by which that may be wrong.

    Each rank in turn asks rank 0 for the time, and keeps the answer that came soonest: it was read somewhere within the
    round trip (Cristian 1989). Ranks of one machine have one clock. All ranks call this at once.
    """
    machines = _gathered(torch.frombuffer(bytearray(machine()), dtype=torch.uint8), ranks)
    mine = (0, 0)
    for other in range(1, ranks):
        if torch.equal(machines[other], machines[0]):
            continue
        if rank == 0:
            _answer(other)
        elif rank == other:
            mine = _ask()
    return mine


def _answer(rank: int) -> None:
    for _ in range(ROUNDS):
        dist.recv(torch.empty(1, dtype=torch.int64), rank)
        dist.send(torch.tensor([time.monotonic_ns()]), rank)


def _ask() -> tuple[int, int]:
    best: tuple[int, int] | None = None
    theirs = torch.empty(1, dtype=torch.int64)
    for _ in range(ROUNDS):
        asked = time.monotonic_ns()
        dist.send(torch.zeros(1, dtype=torch.int64), 0)
        dist.recv(theirs, 0)
        trip = time.monotonic_ns() - asked
        if best is None or trip // 2 < best[1]:
            best = (int(theirs) - asked - trip // 2, trip // 2)
    assert best is not None
    return best


def _gathered(tensor: torch.Tensor, ranks: int) -> list[torch.Tensor]:
    every = [torch.empty_like(tensor) for _ in range(ranks)]
    dist.all_gather(every, tensor)
    return every
