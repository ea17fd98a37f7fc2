"""Ranks that die, hang, or go wrong."""

from __future__ import annotations

import os
import random
import re
import signal

from tests.faults.arena import ENDLESS, Arena, Trial
from tests.faults.case import case
from tests.rig import wait_for

KILLED = r"killed by SIGKILL"


@case(
    "R1", "kill -9 of a middle rank while all train", "found within 2 s, all gone 5 s later, named", "I2 I9", timed=True
)
def r1(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch(*ENDLESS).until_step(chance.randint(3, 30))
    trial.kill(arena.middle)
    return [trial.ends("failed", 100, arena.middle, KILLED)]


@case(
    "R2",
    "SIGSTOP of a rank for good",
    "ended at the stall limit; the operation named, stacks saved",
    "I2 I9 I10",
    timed=True,
)
def r2(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch(*ENDLESS, "run.stall_timeout=5").until_step(chance.randint(3, 30))
    trial.kill(arena.middle, signal.SIGSTOP)
    trial.ends("failed", 100, arena.middle, r"stopped by a signal \(SIGSTOP\) in .+: no rank made progress")
    others = [rank for rank in range(arena.ranks) if rank != arena.middle]
    without = [rank for rank in others if b"most recent call first" not in trial.files.stacks(1, rank).read_bytes()]
    assert not without, f"no stacks of rank {without}"
    return [trial]


@case(
    "R2l",
    "the same where the limit is an hour, but steps take milliseconds",
    "ended at the limit that they taught; said",
    "I2 I9 I10",
)
def r2l(arena: Arena, chance: random.Random) -> list[Trial]:
    limits = ("run.stall_timeout=3600", "run.stall_floor=5")
    trial = arena.launch(*ENDLESS, *limits).until_step(chance.randint(80, 120))
    trial.kill(arena.middle, signal.SIGSTOP)
    return [trial.ends("failed", 100, arena.middle, r"stopped by a signal .+; the limit is [0-9.]+ s \(learned: ")]


@case(
    "R3",
    "a rank sleeps in its own code for good",
    "ended at the stall limit; the operation named",
    "I2 I9 I10",
    timed=True,
)
def r3(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch(*ENDLESS, "run.stall_timeout=5").until_step(chance.randint(3, 30))
    trial.do(arena.middle, "import time; time.sleep(10000)")
    trial.ends("failed", 100, arena.middle, "stuck in forward of minibatch [0-9]+.*: no rank made progress")
    assert b"injury" in trial.files.stacks(1, arena.middle).read_bytes(), "the stack does not show where it slept"
    return [trial]


@case("R5", "a rank dies in native code (SIGSEGV)", "named with its likely reason", "I2 I9")
def r5(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch(*ENDLESS).until_step(chance.randint(3, 30))
    trial.do(arena.middle, "import ctypes; ctypes.string_at(0)")
    return [trial.ends("failed", 100, arena.middle, "killed by SIGSEGV .a crash in native code")]


@case(
    "R6",
    "a Python exception in one rank",
    "its traceback once, in its log; the others are consequences",
    "I9",
)
def r6(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch(*ENDLESS).until_step(chance.randint(3, 30))
    trial.do(arena.middle, "raise ValueError('no luck today')")
    trial.ends("failed", 100, arena.middle, "ValueError: no luck today")
    logs = [trial.files.log(1, rank).read_text() for rank in range(arena.ranks)]
    raised = [len(re.findall(r"ValueError: no luck today", log)) for log in logs]
    assert raised[arena.middle] == 1 and sum(raised) == 1, f"the exception stands in the logs {raised} times"
    return [trial]


@case("R7", "a rank leaves early with exit status 0", "failed; it is the one that is named", "I2 I9")
def r7(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch(*ENDLESS).until_step(chance.randint(3, 30))
    trial.do(arena.middle, "import os; os._exit(0)")
    return [trial.ends("failed", 100, arena.middle, "exit status 0 before the run was over")]


@case(
    "R8",
    "a rank holds Python's lock in native code for good",
    "ended at the stall limit, forced",
    "I2 I9 I10",
    timed=True,
)
def r8(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch(*ENDLESS, "run.stall_timeout=5").until_step(chance.randint(3, 30))
    trial.do(arena.middle, "import ctypes; ctypes.PyDLL(None).sleep(10000)")
    return [trial.ends("failed", 100, arena.middle, "stuck in forward of minibatch [0-9]+")]


@case("R10", "kill -9 of hostd", "its ranks die with it; the run is lost, and can be resumed", "I2 I3 I5")
def r10(arena: Arena, chance: random.Random) -> list[Trial]:
    whole = arena.undisturbed()
    trial = arena.launch().until_step(chance.randint(25, 40))
    trial.hurt("SIGKILL to hostd")
    os.kill(trial.hostds()[0], signal.SIGKILL)
    wait_for(lambda: not _alive(trial), 30.0)
    said = trial.end()
    assert said.code == 100 and "lost" in said.text, said.text
    return [trial, arena.launch(command="resume").ends_as(whole)]


@case("R11", "a rank of attempt 1 calls at attempt 2's store", "it joins nothing; the result is right", "I1 I5")
def r11(arena: Arena, chance: random.Random) -> list[Trial]:
    whole = arena.undisturbed()
    trial = arena.launch("run.max_restarts=1").until_step(25)
    old = _environment(trial.pid(1))
    trial.kill(arena.middle)
    trial.until_step(22, attempt=2)
    new = _environment(trial.pid(1))
    assert old["VPIPE_NONCE"] != new["VPIPE_NONCE"]
    stale = {**new, "VPIPE_NONCE": old["VPIPE_NONCE"], "VPIPE_ATTEMPT": "1"}
    child = os.spawnve(os.P_NOWAIT, "/proc/self/exe", _argv(trial.pid(1), attempt=1), stale)
    trial.ends_as(whole)
    _, status = os.waitpid(child, 0)
    assert status != 0, "a stale rank trained along"
    return [trial]


def _environment(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/environ", "rb") as file:
        return dict(word.decode().split("=", 1) for word in file.read().split(b"\0") if b"=" in word)


def _argv(pid: int, attempt: int) -> list[str]:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return [*file.read().decode().split("\0")[:-2], str(attempt)]


def _alive(trial: Trial) -> bool:
    return any(os.path.exists(f"/proc/{trial.pid(rank)}") for rank in range(trial.arena.ranks))
