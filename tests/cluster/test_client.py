"""What becomes of a run whose client is killed, falls asleep or loses its network: nothing; and it sees all of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import gang
from tests.rig import wait_for
from tests.testbed.host import Host
from tests.testbed.network import Testbed
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.store import Run, list_runs
from worker.spec.records import FINAL

CLIENT = """
import sys
from pathlib import Path
from tests.cluster import gang
from vpipe_cli.runs import state, watch
run = gang.begin(Path(sys.argv[1]), sys.argv[2].split(","), [sys.argv[3]])
sys.exit(state.EXIT_CODES.get(watch.follow(run, style="plain"), 0))
"""
FOLLOW = "import sys; from vpipe_cli.runs import store, watch; print(watch.follow(store.find(), style='plain'))"
COUNTS = gang.READY + "for number in range(1200): print(f'line {number}', flush=True); time.sleep(0.01)"


class Client:
    """A process that launches a gang and watches it, as ``vpipe launch`` does; what it shows goes to a file."""

    def __init__(self, folder: Path, testbed: Testbed, hosts: list[Host], program: str) -> None:
        self.shown = folder / "shown"
        names = ",".join(host.name for host in hosts)
        command = [sys.executable, "-c", CLIENT, str(testbed.ssh_config), names, program]
        with self.shown.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def run(self) -> Run:
        return wait_for(lambda: next(iter(list_runs()), None))

    def shows(self, rank: int, text: str) -> bool:
        return re.search(rf"^{rank}/\S+ \S+ +\| {re.escape(text)}$", self.shown.read_text(), re.MULTILINE) is not None


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own; no process of any of its runs outlives the test."""
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    yield tmp_path
    for run in list_runs():
        for pid in [*gang.hostds(run), *gang.alive(run)]:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def begin(tmp_path: Path, testbed: Testbed) -> Iterator[Callable[[list[Host], str], Client]]:
    started: list[Client] = []

    def start(hosts: list[Host], program: str) -> Client:
        started.append(Client(tmp_path, testbed, hosts, program))
        return started[-1]

    yield start
    for client in started:
        client.process.kill()
        client.process.wait()


def ranks_log(host: Host, run: Run, rank: int) -> bytes:
    return host.path(f"/root/.vpipe/runs/{run.id}/attempt-1/rank-{rank}.log").read_bytes()


def all_here_once(hosts: list[Host], run: Run) -> bool:
    """Whether the copies on this machine are what the hosts have, and that is what the ranks printed."""
    for rank, host in enumerate(hosts):
        there = ranks_log(host, run, rank)
        lines = [line.split(b" ", 2)[2] for line in there.splitlines()]
        assert lines[1:] == [b"line %d" % number for number in range(1200)]
        assert run.files.log(1, rank).read_bytes() == there
    return True


def lines_shown(shown: str, rank: int) -> list[int]:
    return [int(found) for found in re.findall(rf"^{rank}/\S+ \S+ +\| line (\d+)$", shown, re.MULTILINE)]


def test_killed_while_it_runs(testbed: Testbed, begin: Callable[[list[Host], str], Client]) -> None:
    hosts = testbed.take(2)
    client = begin(hosts, COUNTS)
    wait_for(lambda: client.shows(1, "line 100"))
    client.process.kill()
    followed = subprocess.run([sys.executable, "-c", FOLLOW], capture_output=True, text=True, timeout=60)
    assert followed.stdout.rstrip().endswith("succeeded"), followed.stdout + followed.stderr
    assert all_here_once(hosts, client.run())
    assert [lines_shown(followed.stdout, rank) for rank in (0, 1)] == [list(range(1200))] * 2


def test_asleep_for_a_while(testbed: Testbed, begin: Callable[[list[Host], str], Client]) -> None:
    hosts = testbed.take(2)
    client = begin(hosts, COUNTS)
    wait_for(lambda: client.shows(1, "line 100"))
    client.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: b"line 1000\n" in ranks_log(hosts[0], client.run(), 0))
    client.process.send_signal(signal.SIGCONT)
    assert client.process.wait(60) == 0
    assert all_here_once(hosts, client.run())
    assert [lines_shown(client.shown.read_text(), rank) for rank in (0, 1)] == [list(range(1200))] * 2


def test_its_network_cut_and_back(testbed: Testbed, begin: Callable[[list[Host], str], Client]) -> None:
    """Long enough for the run to end meanwhile."""
    hosts = testbed.take(2)
    client = begin(hosts, COUNTS)
    wait_for(lambda: client.shows(1, "line 100"))
    testbed.cut_client()
    wait_for(lambda: b"line 1199\n" in ranks_log(hosts[0], client.run(), 0))
    assert client.process.poll() is None
    testbed.join_client()
    assert client.process.wait(90) == 0
    assert all_here_once(hosts, client.run())
    assert [lines_shown(client.shown.read_text(), rank) for rank in (0, 1)] == [list(range(1200))] * 2


def test_killed_while_it_ships(testbed: Testbed, begin: Callable[[list[Host], str], Client]) -> None:
    client = begin(testbed.take(2), gang.SLEEP)
    run = client.run()
    wait_for(lambda: gang.states(run)[-1:] == ["shipping"])
    client.process.kill()
    client.process.wait()
    nothing_without_an_owner(run)


def test_killed_while_it_starts(testbed: Testbed, begin: Callable[[list[Host], str], Client]) -> None:
    client = begin(testbed.take(2), gang.SLEEP)
    run = client.run()
    wait_for(lambda: gang.hostds(run))
    client.process.kill()
    client.process.wait()
    nothing_without_an_owner(run)


def nothing_without_an_owner(run: Run) -> None:
    """The run has ended and left nothing, or it runs and can be stopped."""
    settled = wait_for(lambda: (now := standing(run)).state in (*FINAL, "running") and now, 90)
    if settled.state == "running":
        gang.ENGINE.request_stop(run)
        wait_for(lambda: standing(run).state == "stopped")
    else:
        assert settled.state in ("lost", "failed")
    wait_for(lambda: not gang.alive(run) and not gang.hostds(run))
