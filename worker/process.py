"""One rank as a process: what `python -m worker --job JOB.json --rank N --attempt K` does.

Its environment names the rendezvous (see ``worker.rendezvous``). What it knows of its own failure goes to
attempt-K/rank-N.error.json, from which hostd tells causes from consequences.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from worker import compiling, progress
from worker.eager import spare_the_compiler
from worker.errors import (
    CheckpointError,
    DataError,
    MismatchError,
    ModelError,
    NonFiniteLoss,
    PeerLost,
    StallError,
    UsageError,
    VpipeError,
)
from worker.heap import keep_freed
from worker.recovery.leave import LEFT, Left
from worker.rendezvous import Rendezvous
from worker.spec.files import RunFiles, write_atomic
from worker.spec.job import Job
from worker.train import train

PERMANENT = (UsageError, CheckpointError, DataError, MismatchError, ModelError, NonFiniteLoss)
"""What would end another attempt in the same way."""


def main() -> int:
    """Run one rank; returns its exit status."""
    arguments = _arguments()
    files = RunFiles(arguments.job.parent)
    keep_freed()
    spare_the_compiler()
    try:
        _be_visible(files, arguments.attempt, arguments.rank)
        job = Job.model_validate_json(arguments.job.read_text())
        if job.spec.pipeline.compile:
            compiling.prepare(cache_folder())
        rendezvous = Rendezvous.from_environment(arguments.rank, len(job.ranks), job.spec.run.start_timeout)
        train(job, arguments.rank, files, arguments.attempt, cache_folder(), rendezvous)
    except Left as left:
        print(left, flush=True)
        write_atomic(files.error(arguments.attempt, arguments.rank), json.dumps({"message": str(left)}) + "\n")
        return LEFT
    except Exception as error:
        if not isinstance(error, VpipeError):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        _record(files.error(arguments.attempt, arguments.rank), error)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker", description="One rank of a vpipe job.")
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--attempt", type=int, default=1)
    return parser.parse_args()


def cache_folder() -> Path:
    """Where prepared data is kept between runs."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vpipe"
    return Path(os.environ.get("VPIPE_CACHE") or default)


def _be_visible(files: RunFiles, attempt: int, rank: int) -> None:
    """Let hostd see what this rank does, and have its stacks for the asking (SIGUSR2), even in the midst of a hang."""
    progress.open_at(files.progress(attempt, rank))
    stacks = os.open(files.stacks(attempt, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    faulthandler.register(signal.SIGUSR2, stacks, all_threads=True)


def _record(path: Path, error: Exception) -> None:
    """A stall names the one that was waited for, so like a lost peer it is rarely the cause itself."""
    ours = isinstance(error, VpipeError)
    words = {
        "message": str(error) if ours else f"{type(error).__name__}: {error}",
        "consequence": isinstance(error, (PeerLost, StallError)),
        "permanent": isinstance(error, PERMANENT) or (progress.step() <= 1 and not ours and not _may_heal(error)),
        "step": progress.step() or None,
    }
    write_atomic(path, json.dumps(words) + "\n")


def _may_heal(error: Exception) -> bool:
    """What the system refused now it may grant later; a mistake in the code stays one."""
    return isinstance(error, OSError)
