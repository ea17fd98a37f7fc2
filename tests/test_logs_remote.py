"""Logs that are on other hosts: asked for there, merged here, every byte once whatever happens to the connection."""

from __future__ import annotations

import ast
import os
import signal
import threading
from pathlib import Path

import pytest

from tests import runs
from tests.spread import Spread
from tests.testbed.network import Testbed
from vpipe_cli.onhost import send
from vpipe_cli.runs import remote
from vpipe_cli.runs.ask import Choice, ask
from vpipe_cli.runs.merge import entries
from vpipe_cli.runs.reading import Query
from worker import logfilter


@pytest.fixture
def spread(tmp_path: Path, testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> Spread:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    return Spread(tmp_path, testbed)


def test_the_hosts_answer_what_is_asked(spread: Spread) -> None:
    for number in range(40):
        spread.log(number % 2, number, f"step {number}")
    assert spread.lines(Query()) == [f"step {number}" for number in range(40)]
    assert spread.lines(Query(tail=3)) == ["step 37", "step 38", "step 39"]
    assert spread.lines(Query(grep="7$")) == ["step 7", "step 17", "step 27", "step 37"]
    assert spread.lines(Query(grep="0$", tail=2)) == ["step 20", "step 30"]
    assert spread.lines(Query(since=runs.stamp(37))) == ["step 37", "step 38", "step 39"]
    assert spread.lines(Query(since=runs.stamp(36), until=runs.stamp(38)), Choice(ranks="0")) == ["step 36", "step 38"]
    assert not (spread.here.attempt(1) / "rank-0.log").exists()  # nothing more than the answer came


def test_a_long_log_moves_no_more_than_its_answer(spread: Spread) -> None:
    log = spread.there[0].log(1, 0)
    with log.open("wb") as file:
        file.truncate(10 << 30)  # what was dropped of it reads as zeros
    spread.log(0, 5, "the end")
    assert spread.lines(Query(tail=1)) == ["the end"]
    assert spread.lines(Query(grep="end")) == ["the end"]
    assert spread.lines(Query(since=runs.stamp(1))) == ["the end"]


def test_following_loses_and_repeats_nothing_when_the_connection_breaks(
    spread: Spread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "AGAIN", 0.1)
    wanted = [f"line {number}" for number in range(3000)]
    half = threading.Event()

    def write() -> None:
        for number, text in enumerate(wanted):
            spread.log(number % 2, number / 10, text)
            if number == 1500:
                half.wait(30)
        spread.end()

    writer = threading.Thread(target=write)
    writer.start()
    seen: dict[int, list[str]] = {0: [], 1: []}
    with ask(spread.run, Choice(), Query(follow=True), lambda: None, lambda _: None) as (sources, read):
        for batch in read(entries):
            for _, number, line in batch:
                seen[sources[number].rank].append(line[30:].decode())
            if not half.is_set() and sum(map(len, seen.values())) == 1501:
                sshd = spread.hosts[0].pid
                for session in Path(f"/proc/{sshd}/task/{sshd}/children").read_text().split():
                    os.kill(int(session), signal.SIGKILL)
                half.set()
    writer.join()
    assert seen == {rank: wanted[rank::2] for rank in (0, 1)}


def test_a_program_on_a_host_is_python_3_8(spread: Spread) -> None:
    """Nothing on a host is newer than that, or installed."""
    for path in (*sorted(Path(send.__file__).parent.glob("*.py")), Path(logfilter.__file__)):
        if path.name not in ("send.py", "__init__.py"):
            ast.parse(path.read_text(), feature_version=(3, 8))
