"""The command line is hurt, or asked for too much at once."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.arena import ENDLESS, LIMIT, Arena, Trial
from tests.faults.case import case
from tests.rig import HOSTD, gone, wait_for
from vpipe_cli.runs import state, store
from worker.spec.files import append_event, read_events


@case("J1", "kill -9 of `vpipe launch` while the run trains", "the run goes on; ps and logs know all of it", "I1 I2 I4")
def j1(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch().until_step(chance.randint(3, 30))
    trial.command.kill()
    trial.command.wait()
    runs = json.loads(trial.vpipe("ps", "-o", "json").out)["runs"]
    states = [run["state"] for run in runs if run["run"] == trial.id]
    assert states in (["running"], ["succeeded"]), states
    trial.vpipe("logs", "-f", trial.id, "-o", "jsonl")
    trial.ends("succeeded", -9)
    return [trial]


@case("J2", "ten hostds and four `resume` of a running run at once", "one attempt; all refused", "I1 I3")
def j2(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch(*ENDLESS)
    trial.until_step(12)
    command = [sys.executable, "-I", "-S", str(HOSTD), str(trial.files.launch)]
    many = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(10)]
    said = [each.communicate(timeout=LIMIT)[1] for each in many]
    assert all(each.returncode == 1 for each in many), said
    assert all("already running" in each for each in said), said
    began = time.monotonic()
    resumes = [arena.start("resume", trial.id) for _ in range(4)]
    answers = [arena.ended(each, began) for each in resumes]
    assert {answer.code for answer in answers} == {101}, [answer.text for answer in answers]
    trial.vpipe("stop", trial.id)
    return [trial.ends("stopped", 103)]


@case("J3", "ten hostds race for a run that nobody began", "one begins, nine are refused", "I1 I3")
def j3(arena: Arena, chance: random.Random) -> list[Trial]:
    from tests.rig import SLEEP, Rig

    rig = Rig(arena.folder / "kept-rig")
    rig.write(SLEEP, SLEEP)
    command = [sys.executable, "-I", "-S", str(HOSTD), str(rig.files.launch)]
    many = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(10)]
    try:
        said = [each.communicate(timeout=LIMIT)[1] for each in many]
        assert sorted(each.returncode for each in many) == [0] + [1] * 9, said
        assert len([event for event in rig.events() if event["state"] == "starting"]) == 1
    finally:
        rig.files.stop.touch()
        rig.end()
        rig.kill_all()
    return []


@case(
    "J5",
    "stop, with a child that ignores SIGTERM in a session of its own",
    "0 survivors within grace + 2 s",
    "I2",
    timed=True,
)
def j5(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch(*ENDLESS).until_step(3)
    child = arena.folder / "kept-child"
    deaf = "import signal, time, os; signal.signal(15, signal.SIG_IGN); os.setsid(); time.sleep(600)"
    code = f"import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', {deaf!r}])\n"
    code += f"open({str(child)!r}, 'w').write(str(p.pid))"
    trial.do(arena.middle, code)
    wait_for(lambda: child.exists() and child.read_text(), LIMIT)
    said = trial.vpipe("stop", trial.id)
    assert said.code == 0, said.text
    trial.ends("stopped", 103)
    assert gone(int(child.read_text())), "the child lives"
    return [trial]


@case("J7", "kill -9 x200 of a process that writes a run's history", "readable; what was acknowledged is there", "I3")
def j7(arena: Arena, chance: random.Random) -> list[Trial]:
    history, acknowledged = arena.folder / "kept-events", 0
    for round_number in range(200):
        heard, tell = os.pipe()
        pid = os.fork()
        if not pid:
            _write_for_ever(history, round_number, tell)
        os.close(tell)
        os.read(heard, 1)
        time.sleep(chance.random() * 0.004)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(heard, "rb") as rest:
            acknowledged += 1 + len(rest.read())
        seen = [event["number"] for event in read_events(history) if event["round"] == round_number]
        assert seen[:1] == [0] and seen == list(range(len(seen)))
    found = len(list(read_events(history)))
    assert found >= acknowledged, f"{acknowledged} acknowledged, {found} there"
    return []


def _write_for_ever(history: Path, round_number: int, tell: int) -> None:
    try:
        for number in range(10**6):
            append_event(history, {"event": "note", "round": round_number, "number": number, "text": "x" * 300})
            os.write(tell, b".")
    finally:
        os._exit(1)


@case("J8", "kill -9 of `vpipe launch` before the run has begun", "lost or running, never stuck", "I2 I3")
def j8(arena: Arena, chance: random.Random) -> list[Trial]:
    for number in range(3):
        process = arena.start("launch", *ENDLESS)
        wait_for(lambda wanted=number + 1: len(list(arena.home.glob("runs/*"))) >= wanted, LIMIT)
        time.sleep(chance.random() * 0.3)
        process.kill()
        process.wait()
    for folder in sorted(arena.home.glob("runs/*")):
        os.environ["VPIPE_HOME"] = str(arena.home)
        if not list(read_events(folder / "events.jsonl")):
            continue  # killed before its first event: passed over by every command
        run = store.find(folder.name)
        now = state.standing(run).state
        assert now in ("planning", "starting", "running", "lost"), now
        said = arena.vpipe("stop", run.id)
        assert said.code == 0, said.text
        assert state.standing(run).state in ("stopped", "lost")
    return []


@case("J9", "50 MB of output, then kill -9", "the last flushed line is kept; the client stays small", "I4")
def j9(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch(*ENDLESS).until_step(3)
    lines, width = 50_000, 1000
    burst = f"import os, sys\nfor n in range({lines}): print(f'{{n:0{width}}}')\n"
    burst += "sys.stdout.flush(); os.kill(os.getpid(), 9)"
    trial.do(arena.middle, burst)
    wait_for(lambda: trial.state == "failed", LIMIT)
    trial.ends("failed", 100, arena.middle, "SIGKILL")
    texts = trial.files.log(1, arena.middle).read_bytes().split(b"\n")
    there = [line[-8:] for line in texts if len(line) > width]
    assert there == [b"%08d" % n for n in range(lines)], f"{len(there)} of {lines} lines are in the log"
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    assert used < 1000, f"the largest child used {used} MiB"
    return [trial]


@case("T1", "the client's clock jumps two hours, back or ahead", "the run is what it is", "I3 I10")
def t1(arena: Arena, chance: random.Random) -> list[Trial]:
    jump = chance.choice([-7200, 7200])
    folder = arena.folder / "kept-clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import time\nreal = time.time\ntime.time = lambda: real() + ({jump} if time.monotonic() % 4 > 2 else 0)\n"
    )
    path = f"{folder}:{arena.env['PYTHONPATH']}"
    trial = arena.launch(PYTHONPATH=path).until_step(3)
    for _ in range(3):
        said = arena.vpipe("status", trial.id, "-o", "json", PYTHONPATH=path)
        assert json.loads(said.out)["state"] in ("running", "succeeded"), said.text
    trial.ends("succeeded", 0)
    return []  # the times in its history are those of two clocks


@case("P1", "pids of a dead run belong to somebody else", "the run is lost; stop and rm touch nobody", "I3")
def p1(arena: Arena, chance: random.Random) -> list[Trial]:
    trial = arena.launch(*ENDLESS).until_step(3)
    os.kill(trial.hostds()[0], signal.SIGKILL)
    wait_for(lambda: all(gone(trial.pid(rank)) for rank in range(arena.ranks)), 30.0)
    trial.end()
    innocent = subprocess.Popen(["sleep", "600"])
    try:
        events = list(read_events(trial.files.events))
        trial.files.events.unlink()
        for event in events:
            replaced = {key: innocent.pid for key in ("pid", "hostd") if key in event}
            append_event(trial.files.events, {**event, **replaced})
        assert trial.status()["state"] == "lost"
        trial.vpipe("stop", trial.id)
        trial.vpipe("rm", trial.id)
        assert innocent.poll() is None, "an innocent process was ended"
    finally:
        innocent.kill()
        innocent.wait()
    return []
