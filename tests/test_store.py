"""Run folders and states: made, found, listed, lost."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import runs
from tests.rig import SLEEP, Rig, gone, wait_for
from vpipe_cli.engines import ENGINES
from vpipe_cli.runs import store
from vpipe_cli.runs.state import standing, status
from vpipe_cli.runs.store import Run, create, find, list_runs, new_id
from vpipe_cli.transport.connect import connect
from worker.errors import PreflightError, RunNotFound
from worker.spec.files import append_event
from worker.spec.ssh import SshSpec


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for each test."""
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A run of small programs."""
    rig = Rig(tmp_path / "run")
    yield rig
    rig.kill_all()


def add(run: str, started: float, cwd: str = "/elsewhere", state: str = "planning") -> Run:
    """A run folder that began at ``started``."""
    folder = store.folder_of(run)
    folder.mkdir(parents=True)
    first = {"time": started, "event": "state", "state": state, "attempt": 1, "cwd": cwd, "engine": "local"}
    append_event(folder / "events.jsonl", first)
    return Run(run, folder, started, cwd, "local")


def run_of(rig: Rig) -> Run:
    return Run("rig", rig.files.folder, 0.0, "/", "local")


def test_home_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VPIPE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert store.home() == Path("/data/vpipe")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/ana")
    assert store.home() == Path("/home/ana/.local/share/vpipe")


def test_create_makes_a_private_folder_whatever_the_umask(home: Path) -> None:
    before = os.umask(0)
    try:
        run = create(new_id("bert"), "local")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (home, home / "runs", run.folder)} == {0o700}
    assert stat.S_IMODE(run.files.events.stat().st_mode) == 0o600
    assert list_runs() == [run] and run.name == "bert"


def test_create_never_takes_a_folder_that_is_there() -> None:
    run = create(new_id("bert"), "local")
    with pytest.raises(PreflightError, match="cannot make the run's folder"):
        create(run.id, "local")


def test_a_home_that_others_could_change_is_not_used(home: Path) -> None:
    home.parent.chmod(0o777)
    with pytest.raises(PreflightError, match=rf"change {home}/runs: everyone may write in {home.parent}\n"):
        create(new_id("bert"), "local")
    assert not home.exists()
    with pytest.raises(PreflightError, match=f"change {home}/known_hosts"):
        connect(["localhost"], SshSpec())
    home.parent.chmod(0o1777)
    assert create(new_id("bert"), "local").folder.exists()


def test_a_home_that_cannot_be_written_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPIPE_HOME", "/dev/null/home")
    with pytest.raises(PreflightError, match="/dev/null/home"):
        create("bert-20261123-124900-0000", "local")


def test_without_a_name_the_newest_of_this_folder_is_meant() -> None:
    here = add("a-20261123-120000-0001", 1.0, os.getcwd())
    add("b-20261123-120001-0002", 2.0)
    assert find() == here


def test_without_one_of_this_folder_the_newest_of_all_is_meant() -> None:
    add("a-20261123-120000-0001", 1.0)
    newest = add("b-20261123-120001-0002", 2.0)
    assert find() == newest


@pytest.mark.parametrize(
    ("asked", "run"),
    [
        ("bert-20261123-120000-0001", "bert-20261123-120000-0001"),
        ("bert", "bert-20261123-120001-0002"),  # the newest of that name, though another begins with it too
        ("bert-20261123-120000", "bert-20261123-120000-0001"),
        ("bert-l", "bert-large-20261123-120002-0003"),
    ],
)
def test_ways_to_name_a_run(asked: str, run: str) -> None:
    add("bert-20261123-120000-0001", 1.0)
    add("bert-20261123-120001-0002", 2.0)
    add("bert-large-20261123-120002-0003", 3.0)
    assert find(asked).id == run


def test_a_beginning_of_several_is_refused_with_their_names() -> None:
    add("bert-20261123-120000-0001", 1.0)
    add("bert-20261123-120001-0002", 2.0)
    with pytest.raises(RunNotFound, match=r"2 runs begin with ber\n.*0002, .*0001"):
        find("ber")


def test_an_unknown_run_names_the_nearest() -> None:
    add("bert-20261123-120000-0001", 1.0)
    with pytest.raises(RunNotFound, match=r"no run brt\n.*bert"):
        find("brt")


@pytest.mark.parametrize("asked", ["../x", "/etc", "", ".", "a/b", "a" * 300, "a\0b", "-rf", "bert*"])
def test_what_cannot_be_a_run_is_never_a_path(asked: str) -> None:
    add("bert-20261123-120000-0001", 1.0)
    with pytest.raises(RunNotFound) as caught:
        find(asked)
    assert caught.value.exit_code == 102 and len(str(caught.value)) < 200


def test_no_run_at_all() -> None:
    with pytest.raises(RunNotFound, match="`vpipe launch` starts one"):
        find()


def test_foreign_and_corrupt_folders_are_passed_over(home: Path) -> None:
    run = add("bert-20261123-120000-0001", 1.0)
    (home / "runs" / "notes").mkdir()
    (home / "runs" / "empty-20261123-120000-0001").mkdir()
    (home / "runs" / "file-20261123-120000-0001").write_text("")
    (home / "runs" / "link-20261123-120000-0001").symlink_to(run.folder)
    (add("torn-20261123-120000-0001", 1.0).files.events).write_bytes(b'\xff{"time": 1')
    assert list_runs() == [run]


def test_a_running_run_is_held_by_its_lock(rig: Rig) -> None:
    rig.start(SLEEP)
    wait_for(lambda: "running" in rig.states())
    assert standing(run_of(rig)).state == "running"
    rig.files.stop.touch()
    rig.end()
    assert standing(run_of(rig)).state == "stopped"


def test_a_run_whose_hostd_was_killed_is_lost(rig: Rig) -> None:
    rig.start(SLEEP)
    wait_for(lambda: "running" in rig.states())
    os.kill(rig.events()[0]["hostd"], signal.SIGKILL)
    wait_for(lambda: all(map(gone, rig.pids())))
    assert standing(run_of(rig)).state == "lost"


def test_a_launch_that_never_got_to_hostd_is_lost_after_a_while() -> None:
    run = create(new_id("bert"), "local")
    assert standing(run).state == "planning"
    assert standing(Run(run.id, run.folder, 0.0, run.cwd, run.engine)).state == "lost"


def test_asking_for_the_state_does_not_hold_the_lock(rig: Rig) -> None:
    rig.write("pass")
    rig.files.lock.touch()
    assert not ENGINES["local"].alive(run_of(rig))
    assert rig.hostd().returncode == 0
    rig.end()


def test_a_final_state_is_never_left() -> None:
    run = add("bert-20261123-120000-0001", 1.0, state="stopped")
    append_event(run.files.events, {"time": 2.0, "event": "state", "state": "running", "attempt": 1})
    assert standing(run).state == "stopped"


def test_status_of_a_finished_run(home: Path) -> None:
    files = runs.make_run(home)
    runs.succeed(files)
    document = status(find())
    assert (document["state"], document["step"], document["steps"]) == ("succeeded", 20, 20)
    assert document["ranks"][1] == {
        "rank": 1, "stage": 1, "host": "localhost", "device": "cpu", "state": "succeeded",
        "exit": {"code": 0, "signal": None, "cause": "finished"},
    }  # fmt: skip
    assert document["result"]["loss"] == 5.25 and document["first_failure"] is None


def test_status_of_a_failed_run(home: Path) -> None:
    files = runs.make_run(home)
    runs.fail(files)
    document = status(find())
    assert (document["state"], document["step"], document["result"]) == ("failed", 11, None)
    assert (document["first_failure"]["rank"], document["first_failure"]["step"]) == (1, 11)
    assert [rank["state"] for rank in document["ranks"]] == ["failed", "failed"]


def test_status_of_a_run_just_begun_and_of_a_lost_one(home: Path) -> None:
    files = runs.make_run(home)
    assert [rank["state"] for rank in status(find())["ranks"]] == ["lost", "lost"]
    files.launch.unlink()
    files.job.unlink()
    assert status(find())["ranks"] == []


def test_ranks_are_running_once_they_are_ready(rig: Rig) -> None:
    rig.start(SLEEP, SLEEP)
    wait_for(lambda: "running" in rig.states())
    assert [rank["state"] for rank in status(run_of(rig))["ranks"]] == ["running"] * 2
    rig.files.stop.touch()
    rig.end()
