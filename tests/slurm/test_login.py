"""Runs submitted from a machine without Slurm, through SSH to a login node: a real sshd that reaches the real Slurm."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import wait_for
from tests.slurm import gang
from tests.slurm.cluster import Slurm
from tests.slurm.fixtures import _slurm, slurm
from tests.slurm.login import Login
from tests.slurm.test_errands import NODE, shell_of_rank_1
from tests.testbed.network import Testbed
from vpipe_cli.engines.slurm import SlurmEngine
from vpipe_cli.runs.ask import Choice, ask
from vpipe_cli.runs.execute import execute
from vpipe_cli.runs.merge import entries
from vpipe_cli.runs.places import places
from vpipe_cli.runs.reading import Query
from vpipe_cli.runs.remove import remove
from vpipe_cli.runs.state import standing, status
from vpipe_cli.runs.store import Run, create, list_runs, new_id
from worker.errors import PreflightError, UnreachableError
from worker.spec.cluster import DataSpec

__all__ = ["_slurm", "slurm"]


@pytest.fixture
def login(testbed: Testbed, slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Login]:
    made = Login(testbed, slurm, tmp_path)
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    yield made
    engine().close()


HELD: dict[str, object] = {"extra": ["--hold"]}


def engine() -> SlurmEngine:
    """The one that all commands have."""
    assert isinstance(gang.ENGINE, SlurmEngine)
    return gang.ENGINE


def lines(run: Run) -> list[str]:
    """What its ranks have printed, asked for where that is."""
    with ask(run, Choice(), Query(), lambda: None, lambda _: None) as (_, read):
        return [line[30:].decode() for batch in read(entries) for _, _, line in batch]


def command_lines() -> bytes:
    """Those of all processes of this machine, the nodes' and the login node's among them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found.append((entry / "cmdline").read_bytes())
        except OSError:
            continue
    return b"\n".join(found)


def test_from_the_queue_to_the_end(login: Login, slurm: Slurm, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    run = gang.running(login.start(gang.ONCE, max_restarts=1))
    there = login.there(run)
    assert [rank["host"] for rank in status(run)["ranks"]] == slurm.nodes
    gang.ENGINE.refresh(run, wait=60.0)
    assert (status(run)["queue"] or {})["nodes"] == "n[1-2]"

    allocation = there.folder / "allocation.json"
    assert allocation.stat().st_mode & 0o777 == 0o600 and there.folder.stat().st_mode & 0o777 == 0o700
    assert not (run.folder / allocation.name).exists()
    assert json.loads(allocation.read_text())["secret"].encode() not in command_lines()

    assert execute(run, places(run)[1], ["sh", "-c", f"{NODE}; pwd; exit 5"]) == 5
    assert capfdbinary.readouterr().out == f"SLURMD_NODENAME=n2\n{there.folder}\n".encode()
    assert shell_of_rank_1(f"on n2 in {there.folder}") == 3
    assert sorted(lines(run)) == ["rank 0 on n1", "rank 1 on n2"]

    gang.kill(gang.rank_on(run, "n2"), signal.SIGKILL)
    now = gang.end(run)
    assert (now.state, now.attempt) == ("succeeded", 2)
    assert run.files.events.read_bytes() == there.events.read_bytes()
    assert "rank 1 on n2" in run.files.log(2, 1).read_text() and "n1" in (run.folder / "hostd-n1.log").read_text()
    assert remove(run) == ["h1", "localhost"]
    assert not there.folder.exists() and not run.folder.exists()


def test_a_login_node_that_is_gone_makes_a_run_unknown(login: Login) -> None:
    run = login.start(gang.SLEEP, HELD)
    assert standing(run).state == "pending"
    assert (status(run)["queue"] or {})["reason"] == "JobHeldUser"
    engine().close()  # as another command would begin, with no connection yet
    login.host.kill()
    login.host.start(port=2222)  # where nobody looks: the other one refuses at once
    assert standing(run).state == "unknown"
    with pytest.raises(UnreachableError, match="h1 "):
        gang.ENGINE.request_stop(run)
    login.host.kill()
    login.start_host()
    wait_for(lambda: standing(run).state == "pending", 60)
    gang.ENGINE.request_stop(run)
    assert gang.end(run).state == "stopped"
    assert run.files.events.read_bytes() == login.there(run).events.read_bytes()


def test_a_job_that_somebody_cancels_while_it_waits(login: Login, slurm: Slurm) -> None:
    """Of its end nobody but this machine can tell, and it does so where the others look."""
    run = login.start(gang.SLEEP, HELD)
    slurm.run("scancel", gang.job(run))
    assert gang.end(run).state == "stopped"
    assert run.files.events.read_bytes() == login.there(run).events.read_bytes()


def test_cut_off_while_sbatch_queues_the_job(login: Login, slurm: Slurm) -> None:
    """What is in the queue all the same never begins."""
    programs = login.home.parent / "programs"
    programs.mkdir()
    sbatch = programs / "sbatch"
    sbatch.write_text(f'#!/bin/sh\nPATH={login.env["PATH"]} sbatch --hold "$@"\nkill -9 $PPID\n')
    sbatch.chmod(0o700)
    login.set_environment({**login.env, "PATH": f"{programs}:{login.env['PATH']}"})
    with pytest.raises(UnreachableError, match=r"while sbatch was to queue the job\n.*squeue --me"):
        login.start(gang.SLEEP)
    (run,) = list_runs()
    assert standing(run).state == "failed"
    (job,) = slurm.jobs()
    slurm.run("scontrol", "release", job)
    wait_for(lambda: not slurm.jobs(), 60)
    there = login.there(run)
    assert "asked for before the run began" in there.events.read_text() and not there.attempt(1).exists()


def check(node: Login, data: object = None, **slurm: object) -> None:
    """What a launch asks of the login node before anything is sent."""
    run = create(new_id("gang"), "slurm")
    given = gang.launch_of(run, [gang.SLEEP] * 2, {"login": "h1", **slurm}, {}, node.ssh_config)
    spec = given.job.spec.model_copy(update={"data": data or given.job.spec.data})
    gang.ENGINE.check(given.model_copy(update={"job": given.job.model_copy(update={"spec": spec})}))


def test_what_a_login_node_cannot_do_is_told_before_anything_is_left(login: Login) -> None:
    with pytest.raises(PreflightError, match=r"^h1: data\.path: no such file or folder: '/no/corpus'\n"):
        check(login, DataSpec(source="text", path="/no/corpus"))
    with pytest.raises(PreflightError, match=r"^Slurm refuses the job: invalid partition specified: nowhere\n"):
        check(login, partition="nowhere")
    programs = login.home.parent / "programs"
    programs.mkdir()
    for name in ("base64", "python3"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    login.set_environment({**login.env, "PATH": str(programs)})
    with pytest.raises(PreflightError, match=r"^there is no sbatch on h1\n.*ssh h1 sbatch --version"):
        check(login)
    (programs / "python3").unlink()
    with pytest.raises(PreflightError, match=r"^h1: no python3: .*\n.*Python 3\.8 or newer"):
        check(login)
    with pytest.raises(UnreachableError, match="nobody "):
        check(login, login="nobody")
    assert not (login.home / "runs").exists()


@pytest.mark.parametrize("inside", ["", "runs", "code"])
def test_a_login_node_where_others_could_change_what_is_kept(login: Login, slurm: Slurm, inside: str) -> None:
    """Code among it, which all nodes run."""
    shared = login.home / inside
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    why = rf"^h1: others could change {shared}: everyone may write in {shared}\n.*`chmod o-w`"
    with pytest.raises(PreflightError, match=why):
        check(login)
    with pytest.raises(PreflightError, match=why):
        login.start(gang.SLEEP, HELD)
    assert not slurm.jobs() and list(shared.iterdir()) == []
    shared.chmod(0o1777)
    check(login)
