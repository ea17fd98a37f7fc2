"""Machines that die together: real hosts, real SSH, ranks that only live; one thing is killed, and all must end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import gang
from tests.cluster.gang import SLEEP, alive, end, running, seconds_until_gone, start, states
from tests.rig import wait_for
from tests.testbed.network import Testbed
from vpipe_cli.runs.state import EXIT_CODES, standing
from vpipe_cli.runs.store import create, list_runs, new_id
from worker.errors import PreflightError, UnreachableError

LIMIT = 15.0
"""Seconds in which everything must be gone everywhere."""
PLACES = pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "middle", "last"])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own; no process of any of its runs outlives the test."""
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    yield tmp_path
    for run in list_runs():
        for pid in [*gang.hostds(run), *alive(run)]:
            os.kill(pid, signal.SIGKILL)


def test_ranks_on_several_hosts_finish_and_their_files_are_here(testbed: Testbed) -> None:
    run = start(testbed, testbed.take(3), gang.READY)
    ended = end(run)
    assert (ended.state, ended.first_failure) == ("succeeded", None)
    assert states(run) == ["planning", "shipping", "starting", "running", "succeeded"]
    assert [gang.text(run, rank) for rank in range(3)] == [f"rank {rank} on h{rank + 1}" for rank in range(3)]
    assert all(run.files.exit(1, rank).exists() for rank in range(3))


@PLACES
def test_a_killed_rank_takes_all_with_it(testbed: Testbed, place: int) -> None:
    hosts = testbed.take(3)
    run = running(start(testbed, hosts))
    os.kill(gang.rank_of(hosts[place], run), signal.SIGKILL)
    assert seconds_until_gone(run) < LIMIT
    ended = end(run)
    assert EXIT_CODES[ended.state] == 100
    cause = "killed by SIGKILL (out of memory, or kill -9)"
    expected = {"rank": place, "stage": place, "host": f"h{place + 1}", "cause": cause, "step": None}
    assert ended.first_failure == expected


@PLACES
def test_a_killed_hostd_takes_all_with_it(testbed: Testbed, place: int) -> None:
    hosts = testbed.take(3)
    run = running(start(testbed, hosts))
    os.kill(gang.hostd_of(hosts[place], run), signal.SIGKILL)
    assert seconds_until_gone(run) < LIMIT
    ended = end(run)
    assert EXIT_CODES[ended.state] == 100 and ended.first_failure
    assert (ended.first_failure["rank"], ended.first_failure["host"]) == (place, f"h{place + 1}")
    assert "hostd" in ended.first_failure["cause"] or "is lost" in ended.first_failure["cause"]


@PLACES
@pytest.mark.parametrize("what", ["kill", "cut"])
def test_a_lost_host_takes_all_with_it(testbed: Testbed, place: int, what: str) -> None:
    """One that lost power, and one whose cable was pulled: its own ranks must end too, though nobody can tell it."""
    hosts = testbed.take(3)
    run = running(start(testbed, hosts))
    getattr(hosts[place], what)()
    assert seconds_until_gone(run) < LIMIT
    ended = end(run, 60)
    assert EXIT_CODES[ended.state] == 100 and ended.first_failure
    assert (ended.first_failure["rank"], ended.first_failure["host"]) == (place, f"h{place + 1}")
    assert "is lost" in ended.first_failure["cause"]


def test_stop_reaches_every_host(testbed: Testbed) -> None:
    run = running(start(testbed, testbed.take(3)))
    gang.ENGINE.request_stop(run)
    assert end(run).state == "stopped"
    assert not alive(run)


def test_a_host_that_is_down_at_launch_is_named_and_the_others_are_clean(testbed: Testbed) -> None:
    hosts = testbed.take(3)
    hosts[1].kill()
    with pytest.raises(UnreachableError, match="h2") as caught:
        start(testbed, hosts)
    assert caught.value.exit_code == 105
    run = list_runs()[0]
    assert standing(run).state == "failed"
    assert not alive(run) and not gang.hostds(run)


def test_a_member_that_cannot_begin_is_named_and_the_others_end(testbed: Testbed) -> None:
    hosts = testbed.take(3)
    run = create(new_id("gang"), "ssh")
    hosts[1].path(f"/root/.vpipe/runs/{run.id}/attempt-1/host-h2").mkdir(parents=True)
    with pytest.raises(PreflightError, match=r"h2: hostd could not be started: .* was started before"):
        gang.ENGINE.start(run, gang.launch_of(testbed.ssh_config, run, ["h1", "h2", "h3"], [SLEEP] * 3), "")
    wait_for(lambda: not gang.hostds(run) and not alive(run))
    assert standing(run).state == "failed"


def test_unreachable_is_unknown_until_it_answers(testbed: Testbed) -> None:
    hosts = testbed.take(2)
    run = running(start(testbed, hosts))
    testbed.cut_client()
    wait_for(lambda: standing(run).state == "unknown", 60)
    testbed.join_client()
    wait_for(lambda: standing(run).state == "running", 60)
    gang.ENGINE.request_stop(run)
    assert end(run).state == "stopped"
