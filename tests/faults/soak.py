"""``python -m tests.faults.soak [--way W] [--minutes M] [--injuries N]``: hurt one run at random, until that is over.

Its end must be that of the undisturbed run, bit for bit, and hostd must have begun again as often as it was hurt.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults import table
from tests.faults.arena import Arena, Trial
from tests.faults.battery import end_when_told
from tests.faults.case import CASES, Outcome
from tests.faults.cases import load
from tests.faults.checkers import check
from tests.faults.times import measure

ASP = ("pipeline.sync_mode=asp", "pipeline.minibatches_per_step=null")
TWICE = ("pipeline.stages=2", "pipeline.replicas=2", "pipeline.recompute_ratio=0.5")
WAYS: dict[str, tuple[str, ...]] = {
    "chain": (),
    "asp-chain": (*ASP, "pipeline.recompute_ratio=0.5"),
    "bsp": TWICE,
    "asp": (*ASP, *TWICE),
}
"""A stage on each rank; or, of four ranks, two stages with two replicas each."""
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


@dataclass(frozen=True)
class Length:
    """When a soak is over: after so many minutes or injuries, or when the run is nearly at its end."""

    minutes: float
    injuries: int
    steps: int


def soak(arena: Arena, upto: Length, chance: random.Random, settings: tuple[str, ...]) -> Trial:
    """One run, hurt until that is over, then left to end."""
    steps = upto.steps
    length = (f"run.steps={steps}", *settings)
    whole = arena.undisturbed(*length)
    until = time.monotonic() + 60.0 * upto.minutes
    trial = arena.launch(*length, STALL, "run.max_restarts=1000")
    reached = 0
    while time.monotonic() < until and len(trial.injuries) < upto.injuries:
        reached = min(steps - 8, max(reached, trial.step(0)) + chance.randint(1, max(1, steps // 50)))
        if not trial.reaches(reached, len(trial.injuries) + 1) or reached >= steps - 8 or not hurt(trial, chance):
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
    parser.add_argument("--injuries", type=int, default=10**6, help="no more than these")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--way", choices=WAYS, default="bsp")
    given = parser.parse_args()
    load()
    end_when_told()
    length = Length(given.minutes, given.injuries, given.steps)
    arena = Arena(Path(tempfile.mkdtemp(prefix="soak-")), given.ranks)
    try:
        trial = soak(arena, length, random.Random(given.seed), WAYS[given.way])
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
