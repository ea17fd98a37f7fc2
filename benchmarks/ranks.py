"""Forks the ranks of one measurement, and never waits for them longer than was said."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from worker.heap import keep_freed

GRACE = 3.0
"""Seconds that ranks get to end by themselves after a deadline, or after another one failed."""


class RankFailure(Exception):
    """Ranks that failed or hung, with what they said of it."""


def run(ranks: int, main: Callable[[int], Any], deadline: float) -> list[Any]:
    """What ``main(rank)`` returns on every rank: a process each, one thread, Gloo over loopback.

    ``main`` returns what JSON can hold. A rank that hangs writes down its stack and is killed.

    Raises:
        RankFailure: a rank failed, or did not end within ``deadline`` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="vpipe-benchmark-") as name:
        folder = Path(name)
        sys.stdout.flush()
        statuses: dict[int, int | None] = {}
        try:
            for rank in range(ranks):
                statuses[_fork(rank, ranks, main, deadline, folder)] = None
            _wait(statuses, deadline)
        finally:
            for pid in [pid for pid, status in statuses.items() if status is None]:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        if any(status != 0 for status in statuses.values()):
            raise RankFailure("; ".join(_complaints(folder, list(statuses.values()))))
        return [json.loads((folder / f"result-{rank}").read_text()) for rank in range(ranks)]


def _fork(rank: int, ranks: int, main: Callable[[int], Any], deadline: float, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with (folder / f"stacks-{rank}").open("w") as stacks:
            faulthandler.dump_traceback_later(deadline, exit=True, file=stacks)
            _join(rank, ranks, deadline, folder)
            (folder / f"result-{rank}").write_text(json.dumps(main(rank)))
            dist.barrier()
        status = 0
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def _join(rank: int, ranks: int, deadline: float, folder: Path) -> None:
    torch.set_num_threads(1)
    keep_freed()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(folder / "store"), ranks)  # type: ignore[attr-defined]
    timeout = timedelta(seconds=deadline + 2 * GRACE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timeout)


def _wait(statuses: dict[int, int | None], deadline: float) -> None:
    """Fill in exit statuses by pid; they stay None for ranks that have to be given up."""
    limit = time.monotonic() + deadline + GRACE
    while None in statuses.values() and time.monotonic() < limit:
        for pid in [pid for pid, status in statuses.items() if status is None]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = status
                limit = min(limit, time.monotonic() + GRACE) if status else limit
        time.sleep(0.01)


def _complaints(folder: Path, statuses: list[int | None]) -> list[str]:
    """One line for each rank that raised or hung. Ranks ended because of another one have nothing to say."""
    lines = []
    for rank, status in enumerate(statuses):
        error, stacks = folder / f"error-{rank}", folder / f"stacks-{rank}"
        if error.exists():
            lines.append(f"rank {rank} failed: {_last_words(error.read_text())}")
        elif stacks.exists() and (stack := stacks.read_text()):
            frames = re.findall(r'File ".*/(\S+)", line (\d+) in (\w+)', stack)
            place = " < ".join(f"{what} ({file}:{at})" for file, at, what in frames[:4])
            lines.append(f"rank {rank} was at the deadline in {place}")
        elif status:
            lines.append(f"rank {rank} ended with status {status}")
    return lines or ["ranks did not end, and said nothing"]


def _last_words(text: str) -> str:
    """The error of a traceback, and where it was raised."""
    lines = text.strip().splitlines()
    place = [line.strip() for line in lines if line.startswith("  File")][-1]
    return f"{lines[-1]} ({place})"
