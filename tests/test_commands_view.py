"""`vpipe logs`, `ps` and `status` as typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests import runs
from vpipe_cli.app import app
from worker.errors import NotFinished, RunNotFound, UsageError
from worker.spec.files import RunFiles


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    made = runs.make_run(tmp_path)
    for number in range(10):
        runs.log(made, number % 2, number, f"line {number}")
    return made


def vpipe(*arguments: str) -> str:
    """What the command prints on standard output; its error is raised."""
    result: Result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def start(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vpipe_cli.app", *arguments]
    env = {**os.environ, "VPIPE_HOME": str(home)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def lines(*arguments: str) -> list[str]:
    """The texts that `vpipe logs` prints."""
    return [line.partition(" | ")[2] for line in vpipe("logs", *arguments).splitlines()]


def test_logs_are_all_there_in_order(files: RunFiles) -> None:
    shown = vpipe("logs").splitlines()
    assert shown[:2] == ["0/s0 localhost | line 0", "1/s1 localhost | line 1"]
    assert lines() == [f"line {number}" for number in range(10)]


def test_logs_of_some_ranks(files: RunFiles) -> None:
    assert lines("--rank", "1") == lines("--stage", "1") == [f"line {number}" for number in (1, 3, 5, 7, 9)]


def test_logs_from_a_place_on(files: RunFiles) -> None:
    assert lines("--tail", "2") == ["line 8", "line 9"]
    assert lines("--tail", "0") == []
    assert lines("--since", "2026-11-23T12:49:07Z") == ["line 7", "line 8", "line 9"]
    assert lines("--since", "2026-11-23T12:49:07Z", "--tail", "1", "--rank", "0") == ["line 8"]


def test_logs_that_match(files: RunFiles) -> None:
    runs.log(files, 0, 11, b"\x1b[31mred\x1b[0m \xff")
    assert lines("--grep", "^red") == ["red \ufffd"]
    assert lines("--grep", "[24]$", "--tail", "1") == ["line 4"]


def test_logs_as_json(files: RunFiles) -> None:
    first = json.loads(vpipe("logs", "-o", "jsonl").splitlines()[0])
    assert list(first) == ["time", "rank", "stage", "host", "attempt", "stream", "text"]
    assert first["text"] == "line 0"


def test_following_the_logs_of_a_run_that_has_ended_ends(files: RunFiles) -> None:
    runs.succeed(files)
    with files.log(1, 0).open("ab") as file:
        file.write(f"{runs.stamp(12)} o torn".encode())
    assert lines("-f", "--tail", "1") == ["line 9", "torn"]


@pytest.mark.parametrize(
    "arguments", [("--rank", "7"), ("--rank", "x"), ("--stage", "3"), ("--grep", "("), ("--since", "soon")]
)
def test_logs_asked_for_wrongly(files: RunFiles, arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=arguments[0]):
        vpipe("logs", *arguments)


def test_logs_of_no_run(files: RunFiles) -> None:
    with pytest.raises(RunNotFound):
        vpipe("logs", "nothing")


def test_logs_of_a_run_that_never_began(files: RunFiles) -> None:
    files.job.unlink()
    with pytest.raises(NotFinished, match="no ranks yet"):
        vpipe("logs")


def test_a_reader_that_has_seen_enough_is_no_error(files: RunFiles, tmp_path: Path) -> None:
    for number in range(5000):
        runs.log(files, 0, 10, f"many lines {number}")
    process = start(tmp_path, "logs")
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(20)) == (b"", 0)
    process.stderr.close()


def test_a_terminal_that_lacks_a_character_gets_a_question_mark(
    files: RunFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    runs.log(files, 0, 11, "\u6f22")
    assert start(tmp_path, "logs", "--tail", "1").communicate(timeout=20) == (b"0/s0 localhost | ?\n", b"")


def test_following_shows_what_comes_until_ctrl_c(files: RunFiles, tmp_path: Path) -> None:
    with runs.alive(files):
        process = start(tmp_path, "logs", "-f", "--rank", "0")
        assert process.stdout
        first = [process.stdout.readline() for _ in range(5)]
        runs.log(files, 0, 20, "while it is followed")
        assert process.stdout.readline().endswith(b"| while it is followed\n")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, b"", b"")
        seen = [line.decode().partition(" | ")[2].rstrip("\n") for line in first]
        assert lines("--rank", "0") == [*seen, "while it is followed"]


def test_ps_lists_runs_newest_first(files: RunFiles, tmp_path: Path) -> None:
    runs.succeed(runs.make_run(tmp_path, number=2))
    shown = vpipe("ps").splitlines()
    assert [line.split()[1] for line in shown] == ["state", "succeeded", "lost"]
    document = json.loads(vpipe("ps", "-o", "json"))
    assert document["schema"] == 1
    assert document["runs"][0] == {
        "run": "bert-20261123-124900-0002",
        "state": "succeeded",
        "step": 20,
        "steps": 20,
        "loss": 5.25,
        "started": runs.BEGIN,
        "folder": str(tmp_path / "runs" / "bert-20261123-124900-0002"),
    }


def test_ps_says_how_many_more_there_are(files: RunFiles, tmp_path: Path) -> None:
    for number in range(2, 24):
        runs.make_run(tmp_path, number=number)
    result = CliRunner().invoke(app, ["ps"])
    assert len(result.stdout.splitlines()) == 21
    assert "3 older ones: vpipe ps --all" in result.stderr
    assert len(vpipe("ps", "--all").splitlines()) == 24


def test_ps_filters_by_name_state_and_date(files: RunFiles, tmp_path: Path) -> None:
    runs.succeed(files)
    for number in range(2, 24):
        runs.make_run(tmp_path, number=number)
    assert len(vpipe("ps", "--name", "bert*", "--all").splitlines()) == 24
    assert len(vpipe("ps", "--state", "succeeded").splitlines()) == 2, "the newest 20 of those that are wanted"
    assert vpipe("ps", "--name", "gpt*") == vpipe("ps", "--until", "2026-11-23T12:49:00Z") == ""
    assert (
        len(vpipe("ps", "--all", "--since", "2026-11-23T12:49:00Z", "--until", "2026-11-23T12:49:01Z").splitlines())
        == 24
    )
    for arguments, message in (("--state", "dead"), "no such state"), (("--since", "soon"), "no time"):
        result = CliRunner().invoke(app, ["ps", *arguments])
        assert isinstance(result.exception, UsageError) and message in result.exception.message


def test_ps_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    assert vpipe("ps") == ""
    assert json.loads(vpipe("ps", "-o", "json")) == {"schema": 1, "runs": []}


def test_status_of_a_running_run(files: RunFiles) -> None:
    runs.state(files, "running")
    runs.add_steps(files, 1, 5)
    with runs.alive(files):
        shown = vpipe("status")
    assert f"run {files.folder.name} running  step 5/20 (25%)" in shown
    assert not files.loss_plot.exists()


def test_status_of_a_run_that_succeeded_draws_its_loss(files: RunFiles) -> None:
    runs.succeed(files)
    assert str(files.loss_plot) in vpipe("status")
    assert files.loss_plot.exists()


def test_status_of_a_run_that_failed(files: RunFiles) -> None:
    runs.fail(files)
    shown = vpipe("status")
    assert "FAILED at step 11: rank 1 (localhost, stage 1) killed by SIGKILL" in shown
    assert "  | the last thing it said" in shown


def test_status_of_a_run_that_never_began(files: RunFiles) -> None:
    for file in (files.job, files.launch):
        file.unlink()
    runs.state(files, "failed")
    assert f"run {files.folder.name} failed at step 0 of 0" in vpipe("status")


def test_status_as_json(files: RunFiles) -> None:
    runs.fail(files)
    document = json.loads(vpipe("status", "-o", "json"))
    assert list(document)[:4] == ["schema", "run", "name", "state"]
    assert document["first_failure"]["rank"] == 1
