"""``python -m tests.faults.soak [--minutes M] [--seed S]``: hurt one run at random, until the time is over.

Its end must be that of the undisturbed run, bit for bit, and hostd must have begun again as often as it was hurt.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import table
from tests.faults.arena import Arena, Trial
from tests.faults.case import CASES, Outcome
from tests.faults.cases import load
from tests.faults.checkers import check
from tests.faults.times import measure

WAYS: dict[str, tuple[str, ...]] = {
    "bsp": (),
    "asp": ("pipeline.sync_mode=asp", "pipeline.minibatches_per_step=null", "pipeline.recompute_ratio=0.5"),
    "replicas": ("pipeline.stages=3", "pipeline.replicas=[1, 2, 1]", "pipeline.recompute_ratio=1.0"),
}
INJURIES = {
    "raise": "raise RuntimeError('chance')",
    "exit": "import os; os._exit(3)",
    "leave": "import os; os._exit(0)",
    "segfault": "import ctypes; ctypes.string_at(0)",
    "sleep": "import time; time.sleep(10000)",
    "lock": "import ctypes; ctypes.PyDLL(None).sleep(10000)",
}
"""What a rank does to itself; beside these, SIGKILL and SIGSTOP."""
STALL = "run.stall_timeout=8"


def soak(arena: Arena, minutes: float, chance: random.Random, steps: int, settings: tuple[str, ...]) -> Trial:
    """One run, hurt until the minutes are over, then left to end."""
    length = (f"run.steps={steps}", *settings)
    whole = arena.undisturbed(*length)
    until = time.monotonic() + 60.0 * minutes
    trial = arena.launch(*length, STALL, "run.max_restarts=1000")
    reached = 0
    while time.monotonic() < until:
        reached = min(steps - 8, reached + chance.randint(1, max(1, steps // 25)))
        trial.until_step(reached, attempt=len(trial.injuries) + 1)
        if reached >= steps - 8 or not hurt(trial, chance):
            break
    trial.ends_as(whole)
    return trial


def hurt(trial: Trial, chance: random.Random) -> bool:
    """One injury; False where the run has ended meanwhile."""
    rank, what = chance.randrange(trial.arena.ranks), chance.choice(["kill", "kill", "stop", *INJURIES])
    print(f"  attempt {trial.attempt}: {what} in rank {rank}", flush=True)
    if what in INJURIES:
        trial.do(rank, INJURIES[what])
    else:
        try:
            trial.kill(rank, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        except ProcessLookupError:
            trial.injuries.pop()
            return False
    return True


def main() -> int:
    """Do what the command line says; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--way", choices=WAYS, default="bsp")
    given = parser.parse_args()
    load()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was begun is ended
    arena = Arena(Path(tempfile.mkdtemp(prefix="soak-")), given.ranks)
    try:
        trial = soak(arena, given.minutes, random.Random(given.seed), given.steps, WAYS[given.way])
        problems = check(trial)
        if trial.attempt != len(trial.injuries) + 1:
            problems.append(f"{len(trial.injuries)} injuries, {trial.attempt - 1} recoveries")
    finally:
        arena.close()
    print(f"{given.way}, seed {given.seed}: {len(trial.injuries)} injuries, {trial.attempt - 1} recoveries")
    outcome = Outcome(CASES["C2"], given.seed, 0.0, problems, measure(trial))
    print(table.text([outcome]).replace("C2  ", "soak"))
    print("\n".join([f"wrong: {problem}" for problem in problems] or ["bit-equal to the undisturbed run"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
