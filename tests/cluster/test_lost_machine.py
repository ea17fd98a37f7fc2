"""A machine that is lost for good, with a part of every checkpoint on its disk: the job ends without it, bit-equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.test_training import BSP, Shell, slots
from tests.rig import wait_for
from tests.testbed.host import Host
from tests.testbed.network import Testbed
from worker.checkpoint import layout

pytestmark = pytest.mark.timeout(600)  # as in test_training, and a machine is waited for before it is given up

LIMIT = 240.0
LENGTH = ("run.steps=80", "checkpoint.every_steps=10", "run.stall_timeout=120")


@pytest.fixture
def shell(tmp_path: Path, testbed: Testbed) -> Shell:
    return Shell(tmp_path, testbed.ssh_config)


def kill_once_saved(host: Host, shell: Shell) -> str:
    """Take a host's power once it has two checkpoints of the run, so that all others have the first; the run."""
    runs = shell.folder / "home" / "runs"
    run = str(wait_for(lambda: next(runs.glob("small-*"), None), LIMIT).name)
    saved = host.path(f"/root/.vpipe/runs/{run}/checkpoints")
    wait_for(lambda: len(layout.steps(saved)) >= 2, LIMIT)
    host.kill()
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the same job ends with on this machine."""
    shell = Shell(tmp_path_factory.mktemp("alone"), Path("/dev/null"))
    shell.write(["cpu*2"])
    ended = json.loads(shell.run("launch", *LENGTH, *BSP, "-o", "json"))
    return str(ended["result"]["weights_sha256"])


def test_a_spare_takes_its_place_while_the_run_is_watched(shell: Shell, testbed: Testbed, undisturbed: str) -> None:
    first, second, third = testbed.take(3)
    shell.write(slots([first, second], 1, 1), more=f"spares: ['{third.name}:cpu']\n")
    launch = shell.start("launch", *LENGTH, *BSP, "-o", "json")
    kill_once_saved(second, shell)
    out, err = launch.communicate(timeout=LIMIT)
    assert launch.returncode == 0, out + err
    assert f"{second.name} does not answer\nin its place: {third.name}:cpu*1\n" in err and "Traceback" not in err
    ended = [json.loads(line) for line in out.splitlines()][-1]
    assert [rank["host"] for rank in ended["ranks"]] == [first.name, third.name]
    assert ended["result"]["weights_sha256"] == undisturbed


def test_without_the_first_machine_on_the_ranks_that_are_left(shell: Shell, testbed: Testbed, undisturbed: str) -> None:
    first, second = testbed.take(2)
    shell.write(slots([first, second], 1, 1))
    shell.run("launch", "-d", *LENGTH, *BSP)
    run = kill_once_saved(first, shell)
    wait_for(lambda: json.loads(shell.run("status", run, "-o", "json"))["state"] == "lost", LIMIT)
    assert "run.min_ranks is not set" in _refused(shell, "resume", run, "spares=['h9:cpu']")
    out = shell.run("resume", run, "run.min_ranks=1", "-o", "json")
    ended = json.loads(out)
    assert [rank["host"] for rank in ended["ranks"]] == [second.name]
    assert ended["result"]["weights_sha256"] == undisturbed


def _refused(shell: Shell, *arguments: str) -> str:
    process = shell.start(*arguments)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 105 and "Traceback" not in err, err
    return err
