"""hostd ends an attempt that hangs or never starts, and begins another where that may help."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import SLEEP, Rig, gone, wait_for
from worker import progress
from worker.hostd.attempt import Attempt, Moves
from worker.hostd.pace import Pace

VISIBLE = """import os, sys, time, pathlib
here, attempt, rank = (os.environ[name] for name in ("HERE", "VPIPE_ATTEMPT", "VPIPE_RANK"))
own = f"{here}/attempt-{attempt}/rank-{rank}"
def say(count, doing, waiting=""):
    open(own + ".progress", "w").write(f"{count}\\t{count}\\t{doing}\\t{waiting}\\t\\0")
say(0, "")
pathlib.Path(own + ".ready").touch()
"""
MOVES = VISIBLE + "for count in range(6000): say(count, 'forward'); time.sleep(0.05)"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "run")
    yield rig
    rig.kill_all()


def failing(words: str = "no luck", **more: object) -> str:
    """A program that fails in its first attempt only."""
    error = json.dumps({"message": words, **more})
    return (
        VISIBLE
        + "other = f'{here}/attempt-1/rank-1.ready'\nwhile not os.path.exists(other): time.sleep(0.01)\n"
        + f"if attempt == '1':\n    time.sleep(0.5); open(own + '.error.json', 'w').write('{error}'); os._exit(3)\n"
        + "print('again', sys.argv)"
    )


def test_a_failed_attempt_is_followed_by_another(rig: Rig) -> None:
    rig.start(failing(), VISIBLE + "if attempt == '1': time.sleep(60)", restarts=1)
    assert rig.end()["state"] == "succeeded"
    assert rig.states() == ["starting", "running", "restarting", "running", "succeeded"]
    restart = rig.events()[2]
    assert (restart["attempt"], restart["failed_attempt"], restart["first_failure"]["rank"]) == (2, 1, 0)
    assert restart["first_failure"]["cause"] == "exit status 3: no luck"
    assert "again" in rig.files.log(2, 0).read_text()
    assert json.loads(rig.files.exit(2, 0).read_text())["code"] == 0


def test_each_attempt_has_its_own_nonce_and_number(rig: Rig) -> None:
    show = VISIBLE + "print(os.environ['VPIPE_NONCE'], sys.argv[-1], flush=True); sys.exit(attempt == '1')"
    rig.write(show, restarts=1)
    launch = json.loads(rig.files.launch.read_text())
    launch["ranks"][0]["argv"] += ["--attempt", "1"]
    rig.files.launch.write_text(json.dumps(launch))
    rig.hostd()
    rig.end()
    said = [rig.files.log(attempt, 0).read_text().split()[2:4] for attempt in (1, 2)]
    assert said[0][0] != said[1][0] and [words[1] for words in said] == ["1", "2"]


def test_restarts_are_counted(rig: Rig) -> None:
    rig.start(VISIBLE + "sys.exit(4)", restarts=2)
    assert (rig.end()["state"], rig.end()["attempt"]) == ("failed", 3)
    assert rig.states().count("restarting") == 2


def test_what_cannot_heal_is_not_tried_again(rig: Rig) -> None:
    rig.start(failing("no such model", permanent=True), SLEEP, restarts=3)
    assert (rig.end()["state"], rig.end()["attempt"]) == ("failed", 1)


def test_a_stopped_run_is_not_tried_again(rig: Rig) -> None:
    rig.start(SLEEP, restarts=3)
    wait_for(lambda: "running" in rig.states())
    rig.files.stop.touch()
    assert (rig.end()["state"], rig.end()["attempt"]) == ("stopped", 1)


def test_a_frozen_rank_is_found_named_and_ended(rig: Rig) -> None:
    """The other one waits for it, so none of them moves."""
    waits = VISIBLE + "say(1, 'forward of minibatch 1', 'x, rank 1 -> rank 0'); time.sleep(600)"
    rig.start(waits, VISIBLE + "say(1, 'backward of minibatch 0'); time.sleep(600)", stall_timeout=1.0)
    wait_for(lambda: "running" in rig.states())
    os.kill(rig.pids()[1], signal.SIGSTOP)
    failure = rig.end()["first_failure"]
    assert (failure["rank"], failure["step"]) == (1, 1)
    assert failure["cause"].startswith("stopped by a signal (SIGSTOP) in backward of minibatch 0: no rank made")
    assert all(map(gone, rig.pids()))


def test_as_long_as_one_rank_moves_nobody_is_ended(rig: Rig) -> None:
    rig.start(MOVES, VISIBLE + "say(1, 'forward', 'x'); time.sleep(600)", stall_timeout=0.5)
    wait_for(lambda: "running" in rig.states())
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 2.0)
    assert rig.states() == ["starting", "running"]
    rig.files.stop.touch()
    assert rig.end()["state"] == "stopped"


def test_a_rank_that_is_never_ready_is_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.start(SLEEP, "import time; time.sleep(600)", start_timeout=-14.5)  # with the margin, half a second
    assert rig.end()["first_failure"]["rank"] == 1
    assert "run.start_timeout" in rig.end()["first_failure"]["cause"]


def gang(hosts: str) -> Attempt:
    """An attempt whose ranks 0, 1 ... are on hosts of one letter each."""
    return Attempt(1, [{"rank": r, "stage": r, "host": host, "device": "cpu"} for r, host in enumerate(hosts)])


def exited(rank: int, code: int = 1, **more: object) -> dict[str, object]:
    record = {"rank": rank, "stage": rank, "host": "?", "code": code, "cause": f"rank {rank}", "step": None}
    return {**record, "ended_by_us": False, "consequence": False, **more}


def test_the_first_own_failure_counts() -> None:
    attempt = gang("aab")
    attempt.ended(exited(0, consequence=True))
    attempt.ended(exited(1, ended_by_us=True))
    attempt.ended(exited(2))
    assert attempt.first_failure and attempt.first_failure["cause"] == "rank 2"


def test_who_left_early_with_status_0_is_named_if_nobody_else_is_to_blame() -> None:
    attempt = gang("aab")
    attempt.ended(exited(1, code=0, cause="finished"))
    attempt.ended(exited(2, consequence=True))
    assert attempt.first_failure and attempt.first_failure["rank"] == 1
    assert attempt.first_failure["cause"].startswith("exit status 0 before the run was over")
    attempt.ended(exited(0))
    assert attempt.first_failure["cause"] == "rank 0"


def test_a_lost_host_is_a_failure_of_its_first_rank() -> None:
    attempt = gang("aabb")
    attempt.lost("b", "no word from it for 6 s")
    assert attempt.first_failure == {
        "rank": 2, "stage": 2, "host": "b", "cause": "host b is lost: no word from it for 6 s", "step": None,
    }  # fmt: skip
    assert attempt.left == {"a"}


def said(count: int, waiting: str = "", limit: str = "", stopped: bool = False) -> list[object]:
    return [str(count), "7", "forward of minibatch 7", waiting, limit, stopped]


def test_who_waits_for_nobody_is_blamed() -> None:
    moves = Moves(Pace(-10.0))
    moves.hear({"0": said(1, "x"), "1": said(1), "2": said(1, "y")})
    stuck = moves.stuck()
    assert stuck and (stuck["rank"], stuck["step"]) == (1, 7)
    assert stuck["cause"] == (
        "stuck in forward of minibatch 7: no rank made progress for 0 s; the limit is -10 s "
        "(run.stall_timeout; run.first_step_timeout is for the first step alone)"
    )


def test_a_rank_may_ask_for_more_time() -> None:
    moves = Moves(Pace(-10.0))
    moves.hear({"0": said(1), "1": said(1, limit="3600")})
    assert moves.stuck() is None


def test_ranks_that_say_nothing_are_never_stuck() -> None:
    assert Moves(Pace(-10.0)).stuck() is None


def test_the_record_of_a_rank_is_what_hostd_reads(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.progress"
    progress.open_at(path)
    progress.at(3, "forward of minibatch 2")
    before = path.read_bytes().split(b"\0")[0].decode().split("\t")
    progress.wait_for("x\tof minibatch 2")
    inside = path.read_bytes().split(b"\0")[0].decode().split("\t")
    progress.go_on()
    assert before[1:] == ["3", "forward of minibatch 2", "", ""]
    assert inside[3] == "x of minibatch 2"
    assert int(path.read_bytes().split(b"\t")[0]) > int(before[0])


def test_the_first_step_may_take_longer_and_what_has_a_limit_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_now", progress._Progress())
    path = tmp_path / "rank-0.progress"
    progress.open_at(path)
    progress.allow(8, 900.0)
    limits = []
    for step, own in ((8, None), (8, 5.0), (9, None)):
        progress.at(step, "forward", own)
        limits.append(path.read_bytes().split(b"\0")[0].decode().split("\t")[4])
    assert limits == ["900", "5", ""]
