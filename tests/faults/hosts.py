"""Hosts that vanish and networks that are cut: on a testbed of namespaces, with ranks that only live."""

from __future__ import annotations

import atexit
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import gang
from tests.faults.arena import Arena, Trial
from tests.faults.case import case
from tests.testbed.host import Host
from tests.testbed.network import Testbed
from vpipe_cli.runs.state import EXIT_CODES
from vpipe_cli.runs.store import Run
from worker.spec.files import read_events

LIMIT = 15.0
"""Seconds in which everything must be gone on every host, the cut-off one included."""


_KEPT: list[Testbed] = []
"""The one testbed of this process."""


@contextmanager
def hosts(arena: Arena, count: int) -> Iterator[tuple[Testbed, list[Host]]]:
    """That many hosts, for one case."""
    before = os.environ.get("VPIPE_HOME")
    os.environ["VPIPE_HOME"] = str(arena.home)
    if not _KEPT:
        _KEPT.append(Testbed())
        atexit.register(_KEPT[0].close)
    try:
        yield _KEPT[0], _KEPT[0].take(count)
    finally:
        _KEPT[0].reset()
        os.environ.pop("VPIPE_HOME")
        if before is not None:
            os.environ["VPIPE_HOME"] = before


def _injured(arena: Arena, chance: random.Random, cause: str, hurt: Callable[[Host, Run], None]) -> list[Trial]:
    """Three hosts, one of which is hurt: all ends everywhere, and that one is named."""
    with hosts(arena, 3) as (testbed, three):
        place = chance.randrange(3)
        run = gang.running(gang.start(testbed, three))
        injury = time.time()
        hurt(three[place], run)
        seconds = gang.seconds_until_gone(run, 60.0)
        ended = gang.end(run, 90.0)
        failure = ended.first_failure or {}
        assert EXIT_CODES[ended.state] == 100 and cause in failure.get("cause", ""), ended
        assert (failure["rank"], failure["host"]) == (place, f"h{place + 1}"), failure
        assert seconds < LIMIT, f"processes of the run lived on for {seconds:.1f} s"
        told = [each["time"] for each in read_events(run.files.events) if each["time"] > injury]
        detect = min(told) - injury if told else seconds
        if detect < seconds:  # else it was the head, and what is known of that is what this machine wrote later
            arena.times.append((detect, seconds - detect, None))
    return []


@case("R4", "a host's network is cut while all train", "all ends on both sides within 15 s", "I1 I2", needs="testbed")
def r4(arena: Arena, chance: random.Random) -> list[Trial]:
    return _injured(arena, chance, "is lost", lambda host, _: host.cut())


@case("R4h", "a host loses power", "all ends everywhere within 15 s; the host is named", "I2", needs="testbed")
def r4h(arena: Arena, chance: random.Random) -> list[Trial]:
    return _injured(arena, chance, "is lost", lambda host, _: host.kill())


@case("R4d", "kill -9 of one host's hostd", "all ends everywhere within 15 s; the host is named", "I2", needs="testbed")
def r4d(arena: Arena, chance: random.Random) -> list[Trial]:
    kill = lambda host, run: os.kill(gang.hostd_of(host, run), signal.SIGKILL)  # noqa: E731
    return _injured(arena, chance, "", kill)


@case("R4r", "kill -9 of a rank on one of three hosts", "all ends everywhere; the rank is named", "I2", needs="testbed")
def r4r(arena: Arena, chance: random.Random) -> list[Trial]:
    kill = lambda host, run: os.kill(gang.rank_of(host, run), signal.SIGKILL)  # noqa: E731
    return _injured(arena, chance, "killed by SIGKILL", kill)


@case("R9", "a host is down at launch", "named, exit 105; nothing is left on the others", "I2 I9", needs="testbed")
def r9(arena: Arena, chance: random.Random) -> list[Trial]:
    with hosts(arena, 3) as (testbed, three):
        down = chance.randrange(3)
        three[down].kill()
        said = arena.vpipe("launch", *_on(testbed, three))
        assert said.code == 105 and f"h{down + 1}" in said.err and "Traceback" not in said.err, said.text
        assert not any(gang.alive(run) for run in _runs(arena))
    return []


@case("S1", "an unknown host key, then a changed one", "refused with the fingerprint, exit 105", "I9", needs="testbed")
def s1(arena: Arena, chance: random.Random) -> list[Trial]:
    with hosts(arena, 1) as (testbed, one):
        known = testbed.known_hosts.read_text()
        testbed.known_hosts.write_text("")
        unknown = arena.vpipe("launch", *_on(testbed, one))
        testbed.known_hosts.write_text(known)
        one[0].kill()
        one[0].new_key()
        one[0].start()
        changed = arena.vpipe("launch", *_on(testbed, one))
    for said in (unknown, changed):
        assert said.code == 105 and "SHA256:" in said.err and "Traceback" not in said.err, said.text
    assert "changed" in changed.err or "another" in changed.err or "not the" in changed.err, changed.err
    return []


def _on(testbed: Testbed, there: list[Host]) -> list[str]:
    names = ", ".join(f"'{host.name}:cpu'" for host in there)
    return [f"machines=[{names}]", "engine=ssh", f"ssh.config={testbed.ssh_config}", f"python={sys.executable}"]


def _runs(arena: Arena) -> list[Run]:
    folders: list[Path] = list(arena.home.glob("runs/*"))
    return [Run(folder.name, folder, 0.0, "", "ssh") for folder in folders]
