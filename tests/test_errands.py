"""`vpipe exec`, `stack`, `rm`, `ps --orphans`: on this machine and on hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import canary, runs
from tests.spread import FOLDER, Spread
from tests.testbed.network import Testbed
from vpipe_cli.app import app
from vpipe_cli.onhost import send
from vpipe_cli.runs.execute import execute
from vpipe_cli.runs.orphans import orphans
from vpipe_cli.runs.places import places
from vpipe_cli.runs.remove import check, remove
from vpipe_cli.runs.stacks import innermost, stacks
from vpipe_cli.transport.shell import command, enter
from worker.errors import UnreachableError, UsageError
from worker.spec.files import RunFiles
from worker.spec.ssh import SshSpec

RANK = """
import faulthandler, os, signal, sys, time
if sys.argv[-1] != "deaf":
    faulthandler.register(signal.SIGUSR2, open(sys.argv[-1], "a"), all_threads=True)
print("ready", flush=True)
def where_it_waits():
    time.sleep(600)
where_it_waits()
"""


def launch(files: RunFiles, env: dict[str, str], cwd: Path | str, argv: list[str] | None = None) -> None:
    """launch.json as far as errands read it."""
    argv = argv or [sys.executable, "-m", "worker", "--rank", "0"]
    ranks = [
        {**place.model_dump(), "argv": argv, "env": env, "inherit": ["PATH"], "cwd": str(cwd)}
        for place in runs.job(ranks=2).ranks
    ]
    before = json.loads(files.launch.read_bytes())["ranks"]
    runs.write_json(
        files.launch, {"ranks": [{**rank, "host": old["host"]} for rank, old in zip(ranks, before, strict=True)]}
    )


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    return runs.make_run(tmp_path)


@pytest.fixture
def spread(tmp_path: Path, testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> Spread:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    return Spread(tmp_path, testbed)


def rank(files: RunFiles, folder: Path, last: str) -> subprocess.Popen[bytes]:
    """A process that looks like rank 0 of the run and waits."""
    (folder / "worker").mkdir()
    (folder / "worker" / "__main__.py").write_text(RANK)
    env = {"VPIPE_RUN": files.folder.name, "VPIPE_RANK": "0", "PATH": os.environ["PATH"]}
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "--rank", "0", last], cwd=folder, env=env, stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline() == b"ready\n"
    return process


@pytest.fixture
def waiting(files: RunFiles, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    launch(files, {}, tmp_path)
    process = rank(files, tmp_path, str(files.stacks(1, 0)))
    yield process
    process.kill()
    process.communicate()


def test_exec_is_in_the_place_of_the_rank(files: RunFiles, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    launch(files, {"MINE": "$HOME; *"}, tmp_path)
    place = places(runs.run(files))[1]
    assert execute(runs.run(files), place, ["sh", "-c", 'echo "$MINE"; pwd; echo oh >&2; exit 7']) == 7
    out, err = capfd.readouterr()
    assert (out, err) == (f"$HOME; *\n{tmp_path}\n", "oh\n")
    assert execute(runs.run(files), place, ["sh", "-c", "kill -9 $$"]) == 137
    assert execute(runs.run(files), place, ["/no/such program"]) == 127


def test_exec_goes_into_the_container(files: RunFiles, tmp_path: Path) -> None:
    launch(files, {}, tmp_path, ["apptainer", "exec", "x.sif", "python3", "-m", "worker", "--rank", "0"])
    assert places(runs.run(files))[0].container == ["apptainer", "exec", "x.sif"]


def test_exec_on_a_host(spread: Spread, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    launch(spread.here, {"TOKEN": canary.SECRET, "ROOT": "~/.vpipe/code"}, FOLDER + spread.run.id)
    place = places(spread.run)[1]
    script = "hostname; pwd; echo $ROOT; ps ax -o args >&2; printf '\\377'; exit 5"
    assert execute(spread.run, place, ["sh", "-c", script]) == 5
    out, err = capfdbinary.readouterr()
    assert out == f"{spread.hosts[1].name}\n{FOLDER}{spread.run.id}\n/var/tmp/vpipe/code\n".encode() + b"\xff"
    assert canary.SECRET.encode() not in err  # in no argv there
    spread.hosts[1].kill()
    with pytest.raises(UnreachableError):
        execute(spread.run, place, ["true"])


def test_a_command_ends_when_its_client_goes_away(tmp_path: Path) -> None:
    from vpipe_cli.transport.local import LocalTransport

    mark = tmp_path / "mark"
    argv = ["sh", "-c", f"trap 'touch {mark}; exit' TERM; echo up; while :; do sleep 0.05; done"]
    request = {"argv": argv, "cwd": "/", "env": {}, "inherit": ["PATH"]}
    channel = send.start(LocalTransport(), "execute", request, timeout=10)
    assert b"up\n" in channel.read(10)
    channel.close()
    for _ in range(200):
        if mark.exists():
            break
        channel_wait()
    assert mark.exists()


def channel_wait() -> None:
    """Let other processes go on for a moment."""
    subprocess.run(["sleep", "0.05"], check=True)


def test_stacks_name_the_place(files: RunFiles, waiting: subprocess.Popen[bytes]) -> None:
    zero, one = stacks(runs.run(files), places(runs.run(files)))
    assert zero.pid == waiting.pid and "where_it_waits" in zero.stack and zero.at.endswith("in where_it_waits")
    assert (one.pid, one.state, one.stack) == (None, "has no process here", "")
    assert waiting.poll() is None


def test_a_rank_without_a_handler_is_not_killed_by_asking(files: RunFiles, tmp_path: Path) -> None:
    launch(files, {}, tmp_path)
    process = rank(files, tmp_path, "deaf")
    answer = stacks(runs.run(files), places(runs.run(files)))[0]
    assert answer.state == "is still starting" and process.poll() is None
    process.kill()
    process.communicate()


def test_the_innermost_place_is_in_our_own_code() -> None:
    stack = 'Thread 1:\n  File "/a/x.py", line 1 in f\n\nCurrent thread 2:\n  File "/t/torch/d.py", line 9 in recv\n'
    stack += (
        '  File "/home/u/worker/communication.py", line 88 in wait\n  File "/home/u/worker/train.py", line 3 in train'
    )
    assert innermost(stack) == "worker/communication.py:88 in wait"
    assert innermost("") == ""


def test_orphans_are_what_has_no_hostd(files: RunFiles, waiting: subprocess.Popen[bytes]) -> None:
    run = files.folder.name
    assert [each.pid for each in orphans(young=0)[0] if each.run == run] == [waiting.pid]
    hostd = subprocess.Popen(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)", "/x/hostd", f"{files.launch}"],
        stdout=subprocess.PIPE,
    )
    assert hostd.stdout and hostd.stdout.readline()
    assert [each for each in orphans(young=0)[0] if each.run == run] == []
    hostd.kill()
    hostd.communicate()


def test_rm_refuses_what_lives_and_asks_before_all_else(files: RunFiles) -> None:
    with runs.alive(files):
        with pytest.raises(UsageError, match="is starting"):
            check(runs.run(files))
        with pytest.raises(UsageError, match="still lives on localhost"):
            remove(runs.run(files))
    runs.succeed(files)
    assert isinstance(CliRunner().invoke(app, ["rm", files.folder.name]).exception, UsageError)  # nobody to ask
    assert files.folder.exists()
    assert CliRunner().invoke(app, ["rm", "-y", files.folder.name]).exit_code == 0
    assert not files.folder.exists()


def test_rm_removes_on_the_hosts_first(spread: Spread) -> None:
    spread.end()
    runs.succeed(spread.here)
    spread.hosts[1].kill()
    with pytest.raises(UnreachableError):
        remove(spread.run)
    assert spread.here.folder.exists() and spread.there[0].folder.exists()
    remove(spread.run, local=True)
    assert not spread.here.folder.exists() and spread.there[0].folder.exists()


def test_the_ssh_command_goes_the_way_of_vpipe_itself(testbed: Testbed) -> None:
    (host,) = testbed.take(1)
    argv = command(host.name, SshSpec(config=str(testbed.ssh_config)), enter("/var/tmp/it's; here"))
    assert argv[0] == "ssh" and argv[-2] == host.name and f"HostName={host.address}" in argv
    host.path("/var/tmp/it's; here").mkdir()
    argv.insert(1, "-T")
    ended = subprocess.run(
        [each for each in argv if each != "-t"], input=b"pwd; hostname\n", capture_output=True, timeout=30
    )
    assert ended.stdout.decode().splitlines()[-2:] == ["/var/tmp/it's; here", host.name], ended.stderr
