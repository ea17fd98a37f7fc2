"""Runs a function on a few ranks: forked processes of this machine, joined by gloo where they ask for it."""

from __future__ import annotations

import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what a first optimizer imports: once here, not in every rank
import torch.distributed as dist

DEADLINE = 60.0


@dataclass(frozen=True)
class Failure:
    """How a rank ended that returned nothing; ``error`` is None where it was killed."""

    error: BaseException | None
    text: str


def join(rank: int, ranks: int, folder: Path, timeout: float = 20.0) -> None:
    """Meet the other ranks of ``folder`` in a process group whose collectives wait ``timeout`` seconds."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(folder / "store"), ranks)
    limit = timedelta(seconds=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=limit)


def run(ranks: int, folder: Path, body: Callable[[int], Any]) -> list[Any]:
    """What ``body(rank)`` returns on every rank."""
    outcomes = attempt(ranks, folder, body)
    failures = [outcome.text for outcome in outcomes if isinstance(outcome, Failure)]
    assert not failures, "\n".join(failures)
    return outcomes


def attempt(ranks: int, folder: Path, body: Callable[[int], Any]) -> list[Any]:
    """What ``body(rank)`` returns on every rank, or the Failure it ended in. None may take longer than DEADLINE."""
    processes = [_fork(rank, folder, body) for rank in range(ranks)]
    try:
        _wait(processes)
    finally:
        for process in processes:
            _kill(process)
    return [_outcome(folder / f"outcome-{rank}") for rank in range(ranks)]


def _fork(rank: int, folder: Path, body: Callable[[int], Any]) -> int:
    if pid := os.fork():
        return pid
    try:
        outcome = body(rank)
    except BaseException as error:
        outcome = Failure(error, f"rank {rank}: {traceback.format_exc()}")
    try:
        (folder / f"outcome-{rank}").write_bytes(pickle.dumps(outcome))
    finally:
        os._exit(0)


def _outcome(path: Path) -> Any:
    return pickle.loads(path.read_bytes()) if path.exists() else Failure(None, f"{path.name} was never written")


def _wait(processes: list[int]) -> None:
    deadline, left = time.monotonic() + DEADLINE, set(processes)
    while left:
        assert time.monotonic() < deadline, f"{len(left)} of {len(processes)} ranks did not end within {DEADLINE} s"
        left -= {process for process in left if os.waitpid(process, os.WNOHANG)[0]}
        time.sleep(0.005)


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
