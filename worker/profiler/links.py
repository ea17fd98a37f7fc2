"""What the link between two ranks carries, as Gloo carries it."""

from __future__ import annotations

import time
from statistics import median

import torch
import torch.distributed as dist

from worker.spec.profile import LinkProfile

LARGE = 4 << 20
ROUNDS = 30


def measure_link(rank: int, size: int = LARGE) -> LinkProfile | None:
    """Latency and bandwidth both ways between ranks 0 and 1 of the process group; None on any other rank.

    Args:
        size: bytes of the message that bandwidth is measured with: as large as what will cross, for small messages do
            not reach the bandwidth of large ones.
    """
    if rank > 1:
        return None
    small, large = torch.zeros(1), torch.zeros(max(1, size // 4))
    empty = _one_way(rank, small, small)
    there, back = _one_way(rank, large, small), _one_way(rank, small, large)
    forward, backward = (large.nbytes / max(seconds - empty, 1e-9) for seconds in (2 * there - empty, 2 * back - empty))
    return LinkProfile(latency=empty, forward=forward, backward=backward)


def _one_way(rank: int, out: torch.Tensor, home: torch.Tensor) -> float:
    """Half the median time of a round trip: ``out`` from rank 0 to 1, then ``home``."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        if rank == 0:
            dist.send(out, 1)
            dist.recv(home, 1)
        else:
            dist.recv(out, 0)
            dist.send(home, 0)
        times.append(time.perf_counter() - started)
    return median(times[ROUNDS // 4 :]) / 2
