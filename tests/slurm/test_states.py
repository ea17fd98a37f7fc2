"""A run on Slurm that is stopped, refused, cancelled, signalled, requeued, or loses a rank or a node."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.rig import SLOW, wait_for
from tests.slurm import gang
from tests.slurm.cluster import Slurm
from tests.slurm.fixtures import _slurm, slurm
from vpipe_cli.runs.state import standing, status
from vpipe_cli.runs.store import create, new_id
from worker.errors import PreflightError
from worker.spec.records import RankExit

__all__ = ["_slurm", "slurm"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))


def test_a_rank_on_each_node_in_the_order_of_slurm(slurm: Slurm) -> None:
    run = gang.start(gang.READY)
    assert gang.end(run).state == "succeeded"
    assert gang.states(run) == ["planning", "shipping", "pending", "starting", "running", "succeeded"]
    for rank, node in enumerate(slurm.nodes):
        assert RankExit.model_validate_json(run.files.exit(1, rank).read_bytes()).host == node
        assert f"rank {rank} on {node}" in run.files.log(1, rank).read_text()
    assert [rank["host"] for rank in status(run)["ranks"]] == slurm.nodes
    assert run.files.slurm_script.read_text().startswith("#!/bin/bash\n#SBATCH --job-name=job\n")


def test_a_job_that_slurm_refuses(slurm: Slurm) -> None:
    run = create(new_id("gang"), "slurm")
    launch = gang.launch_of(run, [gang.SLEEP] * 2, {"partition": "nowhere"}, {})
    with pytest.raises(PreflightError, match=r"^Slurm refuses the job: invalid partition specified: nowhere\n"):
        gang.ENGINE.check(launch)
    with pytest.raises(PreflightError, match="invalid partition specified: nowhere"):
        gang.ENGINE.start(run, launch, "")
    assert standing(run).state == "failed"


def test_a_run_that_waits_says_why_and_can_be_stopped(slurm: Slurm) -> None:
    whole_nodes: dict[str, object] = {"cpus_per_rank": 2}
    first = gang.running(gang.start(gang.SLEEP, slurm=whole_nodes))
    second = gang.start(gang.SLEEP, slurm=whole_nodes)
    wait_for(lambda: standing(second).state == "pending" and (status(second)["queue"] or {}).get("reason"), 60)
    queue = status(second)["queue"]
    assert queue["state"] == "PENDING"
    assert queue["reason"] in ("Resources", "Priority")
    for run in (second, first):
        gang.ENGINE.request_stop(run)
        assert gang.end(run).state == "stopped"
    assert not second.files.attempt(1).exists()
    assert gang.gone(first)


def test_a_job_cancelled_in_slurm(slurm: Slurm) -> None:
    run = gang.running(gang.start(gang.SLEEP))
    slurm.run("scancel", gang.job(run))
    assert gang.end(run).state == "stopped"
    assert gang.gone(run)


def test_a_killed_rank_is_started_again_in_the_same_allocation(slurm: Slurm) -> None:
    run = gang.running(gang.start(gang.ONCE, max_restarts=1))
    gang.kill(gang.rank_on(run, "n2"), signal.SIGKILL)
    now = gang.end(run)
    assert (now.state, now.attempt) == ("succeeded", 2)
    assert gang.states(run)[-4:] == ["running", "restarting", "running", "succeeded"]


def test_a_killed_rank_ends_the_run_where_no_restart_is_left(slurm: Slurm) -> None:
    run = gang.running(gang.start(gang.SLEEP))
    gang.kill(gang.rank_on(run, "n2"), signal.SIGKILL)
    now = gang.end(run)
    assert now.state == "failed" and now.first_failure is not None
    assert now.first_failure["host"] == "n2"
    assert now.first_failure["cause"].startswith("killed by SIGKILL")


def test_a_time_limit_that_comes_near_queues_the_run_again(slurm: Slurm) -> None:
    """Slurm looks at limits every 30 s: at the first look 5 minutes are already too near, and the signal goes out."""
    run = gang.running(gang.start(gang.LEAVES, slurm={"time": 5, "save_before": 299}))
    now = gang.end(run)
    assert (now.state, now.attempt) == ("succeeded", 2)
    assert gang.states(run)[-5:] == ["restarting", "pending", "starting", "running", "succeeded"]


def test_a_run_that_may_not_be_queued_again(slurm: Slurm) -> None:
    run = gang.running(gang.start(gang.LEAVES, slurm={"max_requeues": 0}))
    slurm.run("scancel", "--signal=USR1", "--batch", gang.job(run))
    now = gang.end(run)
    assert now.state == "failed" and now.first_failure is not None
    assert "slurm.max_requeues" in now.first_failure["cause"]


def test_scontrol_requeue(slurm: Slurm) -> None:
    run = gang.running(gang.start(gang.ONCE))
    slurm.run("scontrol", "requeue", gang.job(run))
    now = gang.end(run)
    assert (now.state, now.attempt) == ("succeeded", 2)


@pytest.mark.parametrize("node", ["n1", pytest.param("n2", marks=SLOW)])
def test_a_killed_slurmd(slurm: Slurm, node: str) -> None:
    """Slurm takes the node for dead, and the run goes on once it is back; what the dead node did is not believed."""
    run = gang.running(gang.start(gang.ONCE))
    slurm.kill_node(node)
    wait_for(lambda: "down" in "".join(slurm.states()), 90)
    slurm.start_node(node)
    now = gang.end(run)
    assert (now.state, now.attempt) == ("succeeded", 2)
    assert gang.gone(run)
