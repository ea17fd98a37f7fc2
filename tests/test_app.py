"""The command line as a process: what it prints where, its exit codes, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vpipe_cli import app, starter
from worker import __version__
from worker.errors import ConfigError, PreflightError, Problem, RunNotFound, VpipeError
from worker.spec.cluster import ClusterSpec


def vpipe(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vpipe_cli.app", *arguments],
        cwd=folder,
        env={**os.environ, "VPIPE_HOME": str(folder / "home"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make the command line raise ``error``."""

    def run() -> None:
        raise error

    monkeypatch.setattr(app, "app", run)


def test_version_and_help(tmp_path: Path) -> None:
    assert vpipe(tmp_path, "--version").stdout == f"vpipe {__version__}\n"
    ended = vpipe(tmp_path, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert all(f"\n  {command.__name__.replace('_', '-')} " in ended.stdout for command in app.COMMANDS)


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["--nonsense"], ["init", "a", "b"], ["config", "show", "-o", "xml"]]
)
def test_a_wrong_command_line_ends_in_2(tmp_path: Path, arguments: list[str]) -> None:
    ended = vpipe(tmp_path, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Error: " in ended.stderr and "Traceback" not in ended.stderr


def test_init_writes_a_file_that_loads_and_never_overwrites_one(tmp_path: Path) -> None:
    assert vpipe(tmp_path, "init").stdout == "wrote cluster.yml; run it with: vpipe launch cluster.yml\n"
    path = tmp_path / "cluster.yml"
    assert path.read_text() == starter.text()
    path.write_text("mine")
    refused = vpipe(tmp_path, "init")
    assert refused.returncode == 2
    assert (
        refused.stderr == "error: cluster.yml exists already\nhint: name another file, or overwrite it with --force\n"
    )
    assert path.read_text() == "mine"
    assert vpipe(tmp_path, "init", "--force").returncode == 0
    assert path.read_text() == starter.text()


def test_init_says_why_it_cannot_write(tmp_path: Path) -> None:
    ended = vpipe(tmp_path, "init", "nowhere/c.yml")
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: nowhere/c.yml cannot be written: No such file or directory\n",
    )


def test_the_schema_has_every_key_with_its_description(tmp_path: Path) -> None:
    schema = json.loads(vpipe(tmp_path, "config", "schema").stdout)
    assert list(schema["properties"]) == list(ClusterSpec.model_fields)
    sections = [schema, *schema["$defs"].values()]
    assert all("description" in field for section in sections for field in section["properties"].values())


def test_show_prints_what_loads_to_the_same(tmp_path: Path) -> None:
    vpipe(tmp_path, "init")
    shown = vpipe(tmp_path, "config", "show", "lr=1e-5", "sync_mode=bsp").stdout
    (tmp_path / "again.yml").write_text(shown)
    again = vpipe(tmp_path, "config", "show", "again.yml", "-o", "json")
    document = json.loads(again.stdout)
    assert (document["schema"], document["optimizer"]["lr"]) == (1, 1e-5)
    assert vpipe(tmp_path, "config", "show", "again.yml").stdout == shown


def test_errors_stay_off_stdout_with_json(tmp_path: Path) -> None:
    ended = vpipe(tmp_path, "config", "show", "none.yml", "-o", "json")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: none.yml: no such file; `vpipe init` writes a starter file\n"


@pytest.mark.parametrize(
    "error, code, said",
    [
        (VpipeError("it failed"), 100, "error: it failed\n"),
        (RunNotFound("no run x", "see `vpipe ps`"), 102, "error: no run x\nhint: see `vpipe ps`\n"),
        (PreflightError("two\nlines"), 104, "error: two\nlines\n"),
        (VpipeError("red \x1b[31m\u202ename"), 100, "error: red name\n"),
        (
            ConfigError([Problem("c.yml:1:2", "a", "x"), Problem("c.yml", "", "y")]),
            2,
            "error: c.yml:1:2: a: x\nc.yml: y\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(7), 7, ""),
    ],
)
def test_each_error_becomes_one_message_and_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    raising(monkeypatch, error)
    assert app.main() == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: ZeroDivisionError("by 0"), "internal error: ZeroDivisionError: by 0\n"),
        (lambda: OSError(28, "No space left on device"), "error: [Errno 28] No space left on device\n"),
    ],
)
def test_an_unforeseen_error_is_one_line_and_the_way_to_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make: Callable[[], BaseException], said: str
) -> None:
    raising(monkeypatch, make())
    monkeypatch.setenv("VPIPE_DEBUG", "0")
    assert app.main() == 1
    assert capsys.readouterr().err == said + "hint: VPIPE_DEBUG=1, or --debug before the command, shows the traceback\n"
    monkeypatch.setenv("VPIPE_DEBUG", "1")
    assert app.main() == 1
    assert "Traceback (most recent call last)" in (err := capsys.readouterr().err) and err.endswith(said)


@pytest.mark.parametrize("debug", [["--debug"], []])
def test_debug_shows_the_traceback(tmp_path: Path, debug: list[str]) -> None:
    ended = vpipe(tmp_path, *debug, "config", "show", VPIPE_DEBUG="" if debug else "1")
    assert ended.returncode == 2
    assert ended.stderr.startswith("Traceback") and ended.stderr.endswith("writes a starter file\n")


def test_a_reader_that_went_away_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "vpipe_cli.app", "config", "schema"]
    ended = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert ended.stderr == ""


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vpipe_cli.app", "config", "schema"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: [Errno 28] No space left on device\nhint:")
