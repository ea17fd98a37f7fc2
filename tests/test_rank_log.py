"""A rank's log on its host: what is kept of one that grows too large, and lines that are not whole yet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import READY, Rig, wait_for
from worker import hostfiles, logfilter
from worker.hostd import log
from worker.hostd.log import RankLog
from worker.hostd.words import stamp

LIMIT = 1 << 20


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "run")
    yield rig
    rig.kill_all()


def fill(path: Path, lines: int, limit: int = LIMIT) -> None:
    written = RankLog(str(path), limit)
    for number in range(lines):
        written.write(f"{stamp()} o line {number} {'x' * 200}\n".encode())
    written.close()


def numbers(path: Path) -> list[int]:
    shown = [logfilter.shown(line) for _, line in logfilter.forward(str(path))]
    return [int(line.split()[1]) for line in shown if line.startswith("line")]


def test_below_its_limit_a_log_is_whole(tmp_path: Path) -> None:
    fill(tmp_path / "log", 3000)
    assert numbers(tmp_path / "log") == list(range(3000))


def test_above_its_limit_head_and_tail_are_kept_and_a_line_between_them_says_so(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fill(path, 20_000)
    kept = numbers(path)
    gap = next(place for place, number in enumerate(kept) if number != place)
    assert gap * 240 > LIMIT * 0.45 and kept[gap:] == list(range(kept[gap], 20_000))
    assert (20_000 - kept[gap]) * 240 > LIMIT * 0.2
    assert path.stat().st_blocks * 512 < LIMIT * 1.1 and path.stat().st_size > 4 * LIMIT
    said = [line for _, line in logfilter.forward(str(path)) if b"is over its limit" in line]
    assert len(said) == 1 and b"between this line and the next is gone" in said[0]
    assert [line for _, line in logfilter.backward(str(path))][::-1] == [
        line for _, line in logfilter.forward(str(path))
    ]


def test_where_no_hole_can_be_made_writing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "punch", lambda *_: False)
    fill(tmp_path / "log", 20_000)
    assert (tmp_path / "log").stat().st_size < 1.1 * LIMIT
    *_, last = logfilter.forward(str(tmp_path / "log"))
    assert b"nothing more is written, for this file system knows no holes" in last[1]


def test_a_client_is_sent_no_hole(tmp_path: Path) -> None:
    """It goes on behind it, wherever it had got to."""
    path = tmp_path / "rank-0.log"
    fill(path, 20_000)
    size, offset, sent = path.stat().st_size, 0, 0
    with path.open("rb") as whole:
        while found := hostfiles.news(str(path), offset, 1 << 16):
            begin, data, offset, _ = found
            whole.seek(begin)
            assert data == whole.read(len(data))
            sent += len(data)
    assert offset == size and sent < 1.2 * LIMIT


def test_the_launch_says_how_much_is_kept(rig: Rig) -> None:
    rig.start(READY + "for n in range(9000): print('line', n, 'x' * 200)", log_limit=LIMIT)
    rig.end()
    path = rig.files.log(1, 0)
    assert path.stat().st_size > LIMIT > 0.9 * path.stat().st_blocks * 512
    assert numbers(path)[-1] == 8999


def test_the_beginning_of_a_line_is_written_before_its_end_comes(rig: Rig) -> None:
    wait = "\nwhile not os.path.exists(os.environ['HERE'] + '/go'): time.sleep(0.01)\n"
    rig.start(READY + "print('10%\\r20%', end='', flush=True)" + wait + "print(' done')")
    wait_for(lambda: rig.files.log(1, 0).exists() and rig.text(0) == b"10%\r20%\n")
    before = os.path.getsize(rig.files.log(1, 0))
    (rig.files.folder / "go").touch()
    rig.end()
    assert rig.files.log(1, 0).read_bytes()[before:].endswith(b" o  done\n")
    assert rig.text(0) == b"10%\r20%\n done\n"
