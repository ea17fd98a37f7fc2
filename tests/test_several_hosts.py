"""A run on several hosts, each a folder of this machine: hostds, their links and the mirror, without SSH and root."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import gang
from tests.rig import wait_for, with_token
from tests.several import Several
from vpipe_cli.engines import ENGINES
from vpipe_cli.engines.ssh import SshEngine
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.store import Run, create, list_runs, new_id
from worker.hostd.link import Door, LinkLost, call, nonce_of


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Several]:
    made = Several(tmp_path / "hosts")
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    engine = SshEngine(made.connect)
    monkeypatch.setitem(ENGINES, "ssh", engine)
    yield made
    engine.close()
    for run in list_runs():
        for pid in [*gang.hostds(run), *with_token(run.id)]:
            os.kill(pid, signal.SIGKILL)


def start(hosts: str, program: str, **settings: object) -> Run:
    run = create(new_id("gang"), "ssh")
    ENGINES["ssh"].start(run, gang.launch_of(Path(os.devnull), run, hosts, [program] * len(hosts), **settings), "")
    return run


def test_every_file_comes_home(several: Several) -> None:
    run = start("abc", gang.READY)
    assert gang.end(run).state == "succeeded"
    assert [gang.text(run, rank) for rank in range(3)] == ["rank 0 on a", "rank 1 on b", "rank 2 on c"]
    there = several.root("a") / "runs" / run.id / "events.jsonl"
    assert run.files.events.read_bytes() == there.read_bytes()


def test_a_restart_on_every_host(several: Several) -> None:
    run = start("ab", gang.READY + "sys.exit(rank == '1' and os.environ['VPIPE_ATTEMPT'] == '1')", max_restarts=1)
    assert (gang.end(run).state, gang.end(run).attempt) == ("succeeded", 2)
    assert gang.text(run, 1, attempt=2) == "rank 1 on b"


def test_unreachable_is_unknown(several: Several) -> None:
    run = gang.running(start("ab", gang.SLEEP))
    engine = ENGINES["ssh"]
    assert isinstance(engine, SshEngine)
    engine.close()  # as another command would begin, with no connection yet
    several.down = {"a"}
    assert standing(run).state == "unknown"
    several.down.clear()
    wait_for(lambda: standing(run).state == "running")
    ENGINES["ssh"].request_stop(run)
    assert gang.end(run).state == "stopped"


def test_nobody_joins_without_the_secret() -> None:
    door = Door("127.0.0.1", "right", lambda link, hello: pytest.fail("let in"))
    with pytest.raises(LinkLost):
        _call_while_looking(door, "wrong")


def test_the_nonce_is_another_for_every_attempt_and_every_run() -> None:
    assert len({nonce_of(secret, attempt) for secret in "ab" for attempt in (1, 2)}) == 4


def _call_while_looking(door: Door, secret: str) -> None:
    import threading

    ended = threading.Event()
    looking = threading.Thread(target=lambda: [door.look() for _ in iter(lambda: ended.wait(0.01), True)])
    looking.start()
    try:
        call(door.address, secret, {"host": "b"}, 1.0)
    finally:
        ended.set()
        looking.join()
        door.socket.close()
