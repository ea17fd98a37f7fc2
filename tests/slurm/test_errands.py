"""`vpipe exec`, `stack` and `ssh` on the nodes of a job: steps beside the one that the ranks are in."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig import wait_for
from tests.slurm import gang
from tests.slurm.cluster import Slurm
from tests.slurm.fixtures import _slurm, slurm
from vpipe_cli.runs.execute import execute
from vpipe_cli.runs.places import places
from vpipe_cli.runs.stacks import stacks
from vpipe_cli.runs.store import Run, create, new_id
from worker.errors import NotFinished, UnreachableError, UsageError

__all__ = ["_slurm", "slurm"]

HEARS = (
    gang.READY
    + """import faulthandler, signal
faulthandler.register(signal.SIGUSR2, open(f"{folder}/rank-{rank}.stacks", "a"), all_threads=True)
def where_it_waits():
    time.sleep(600)
where_it_waits()
"""
)
NODE = "tr '\\0' '\\n' </proc/$PPID/environ | grep ^SLURMD_NODENAME="


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))


def started_as_worker(program: str, folder: Path) -> Run:
    """A run whose ranks look like vpipe's own."""
    (folder / "worker").mkdir()
    (folder / "worker" / "__main__.py").write_text(program)
    run = create(new_id("gang"), "slurm")
    launch = gang.launch_of(run, [program] * 2, {}, {})
    ranks = [
        rank.model_copy(
            update={
                "argv": [sys.executable, "-m", "worker", "--rank", str(rank.rank)],
                "env": {**rank.env, "PYTHONPATH": str(folder)},
            }
        )
        for rank in launch.ranks
    ]
    gang.ENGINE.start(run, launch.model_copy(update={"ranks": ranks}), "")
    return run


def shell_of_rank_1(answer: str) -> int:
    """What a shell on its node ends with, once it has said where it is."""
    shell, terminal = pty.openpty()
    command = [sys.executable, "-m", "vpipe_cli.app", "ssh", "--rank", "1"]
    person = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    os.write(shell, b"echo on $SLURMD_NODENAME in $PWD; exit 3\n")
    said = b""
    while answer.encode() not in said:
        said += os.read(shell, 4096)
    code = person.wait(60)
    os.close(shell)
    return code


def test_on_the_nodes_of_a_job(
    slurm: Slurm, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One run for all three: what they do there does not disturb it."""
    run = gang.running(started_as_worker(HEARS, tmp_path))
    monkeypatch.setenv("MY_TOKEN", "secret")

    place = places(run)[1]
    assert execute(run, place, ["sh", "-c", f"{NODE}; pwd; printf '\\377no end'; env >&2; exit 5"]) == 5
    out, err = capfdbinary.readouterr()
    assert out == f"SLURMD_NODENAME=n2\n{run.folder}\n".encode() + b"\xffno end"
    assert f"HERE={run.folder}\n".encode() in err and b"MY_TOKEN" not in err
    assert execute(run, place, ["sh", "-c", "kill -9 $$"]) == 137
    assert execute(run, place, ["/no/such program"]) == 127

    wait_for(lambda: all(each.stack for each in stacks(run, places(run))), 30)
    zero, one = stacks(run, places(run))
    assert [zero.host, one.host] == slurm.nodes and {zero.pid, one.pid} == {gang.rank_on(run, n) for n in slurm.nodes}
    assert "where_it_waits" in zero.stack and "where_it_waits" in one.stack

    assert shell_of_rank_1(f"on n2 in {run.folder}") == 3

    gang.ENGINE.request_stop(run)
    assert gang.end(run).state == "stopped"
    with pytest.raises(UsageError, match=r"has ended \(stopped\)"):
        places(run)


def test_of_a_job_that_waits_or_is_gone(slurm: Slurm) -> None:
    run = create(new_id("gang"), "slurm")
    gang.ENGINE.start(run, gang.launch_of(run, [gang.SLEEP] * 2, {"extra": ["--hold"]}, {}), "")
    with pytest.raises(NotFinished, match="is pending and has no nodes"):
        places(run)
    slurm.run("scontrol", "release", gang.job(run))
    place = places(gang.running(run))[0]
    slurm.run("scancel", gang.job(run))
    wait_for(lambda: not slurm.jobs(), 60)
    with pytest.raises(UnreachableError, match="n1: "):
        execute(run, place, ["true"])
