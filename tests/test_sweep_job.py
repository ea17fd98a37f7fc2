"""A sweep as a user runs it: real trials on real text, killed in the middle and typed again."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.rig import wait_for
from tests.terminal import Terminal
from tests.test_main_job import CLUSTER, Shell
from vpipe_cli.sweep.files import SweepFiles
from worker.spec.files import read_events

SWEEP = ("sweep", "recompute_ratio=0,0.5,1", "--steps", "6")


@pytest.fixture
def shell(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    shell = Shell(tmp_path, tmp_path_factory.mktemp("cache"))
    (tmp_path / "cluster.yml").write_text(CLUSTER.replace("vocab_size: 500", "vocab_size: 300"))
    return shell


def events(files: SweepFiles, kind: str) -> list[dict[str, object]]:
    return [event for event in read_events(files.events) if event["event"] == kind]


def test_a_killed_sweep_goes_on_with_what_is_missing(shell: Shell) -> None:
    command = shell.start(*SWEEP)
    files = SweepFiles(wait_for(lambda: list(shell.home.glob("sweeps/*/sweep.json")))[0].parent)
    wait_for(lambda: events(files, "end"), 60)
    command.kill()
    os.kill(int(str(events(files, "begin")[0]["pid"])), signal.SIGKILL)
    command.communicate()
    done = events(files, "end")
    document = json.loads(shell.run(*SWEEP, "-o", "json"))
    trials = document["trials"]
    assert document["state"] == "done" and [trial["state"] for trial in trials] == ["succeeded"] * 3
    assert [trial["parameters"] for trial in trials] == [{"pipeline.recompute_ratio": r} for r in ("0", "0.5", "1")]
    assert all(trial["peak_memory_bytes"] > 10**8 and trial["measured_steps"] == 5 for trial in trials)
    assert len({round(trial["loss"], 6) for trial in trials}) == 1, "recomputation changes no bit"
    # A run that the killed controller had announced and not yet started is given up, and made anew.
    assert len(list(shell.home.glob("runs/*/result.json"))) == 3, "no trial ran twice"
    assert len(events(files, "end")) == 3 and events(files, "end")[: len(done)] == done
    shown = shell.run("sweep", "show")
    assert "3 of 3 trials have ended" in shown and "vpipe launch cluster.yml run.steps=6 recompute_ratio=0.5" in shown
    assert files.picture.read_bytes().startswith(b"\x89PNG")
    assert shell.run("sweep", "export", "--format", "jsonl") == files.results("jsonl").read_text()


def test_very_many_trials_are_asked_about_first(shell: Shell) -> None:
    typed = ["sweep", "-c", str(shell.folder / "cluster.yml"), "seed=range(0,10000)"]
    terminal = Terminal([sys.executable, "-m", "vpipe_cli.app", *typed], shell.env)
    wait_for(lambda: terminal.shows("10,000 trials") and terminal.shows("run them all? [y/N]"))
    terminal.press("n\n")
    assert terminal.end() == 1
    assert not shell.home.exists()


def test_what_is_wrong_is_told_before_anything_runs(shell: Shell) -> None:
    for arguments, message in [
        (("sweep", "recompute_ratio=0,2"), "must be at most 1, is 2"),
        (("sweep", "seed=range(0,10000)"), "this sweep has 10,000 trials"),
        (("sweep", "lr="), "the grid is empty"),
    ]:
        process = shell.start(*arguments)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 2 and message in err
    assert "new" in shell.run("sweep", "recompute_ratio=0,1", "--dry-run")
    assert not shell.home.exists()
