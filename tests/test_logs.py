"""Logs: every byte once, in order of time, from wherever a reader stopped."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import runs
from vpipe_cli.runs import logs
from worker import logfilter
from worker.errors import UsageError
from worker.spec.files import RunFiles


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    return runs.make_run(tmp_path)


@pytest.fixture
def both(files: RunFiles) -> list[logs.Source]:
    return logs.sources(files, runs.job())


def texts(records: object) -> list[str]:
    return [record.text.decode() for record in records]  # type: ignore[attr-defined]


def follow(chosen: list[logs.Source], cursor: logs.Cursor, finished: Callable[[], bool]) -> Iterator[logs.Record]:
    ended = False
    while not ended:
        ended = finished()
        yield from logs.read(chosen, cursor, rest=ended)


LINE = st.binary(max_size=9).map(lambda line: line.replace(b"\0", b"0"))  # a log's line begins with its stamp


@given(st.lists(LINE), st.integers(1, 8), st.booleans())
def test_backward_is_forward_turned_round(pieces: list[bytes], block: int, rest: bool) -> None:
    content = b"\n".join(pieces)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(logfilter, "BLOCK", block)
        file = Path(folder, "log")
        file.write_bytes(content)
        found = list(logfilter.forward(str(file), rest=rest))
        assert found == list(logfilter.backward(str(file), rest=rest))[::-1]
    *whole, partial = content.split(b"\n")
    assert [line for _, line in found] == whole + ([partial] if rest and partial else [])


def test_ranks_are_merged_by_time(files: RunFiles, both: list[logs.Source]) -> None:
    for at, rank, text in ((1, 0, "a"), (3, 0, "c"), (2, 1, "b"), (4, 1, "d")):
        runs.log(files, rank, at, text)
    assert texts(logs.read(both, {})) == ["a", "b", "c", "d"]


def test_a_record_says_what_the_log_says(files: RunFiles, both: list[logs.Source]) -> None:
    runs.log(files, 1, 1.5, b"x\x1b[2J\xff\r", "e")
    (record,) = logs.read(both, {})
    assert (record.time, record.stream, record.text) == ("2026-11-23T12:49:01.500000Z", "stderr", b"x\x1b[2J\xff\r")
    assert (record.source.rank, record.source.stage, record.source.host) == (1, 1, "localhost")


def test_reading_goes_on_behind_the_cursor(files: RunFiles, both: list[logs.Source]) -> None:
    for number in range(6):
        runs.log(files, number % 2, number, str(number))
    cursor: logs.Cursor = {}
    first = logs.read(both, cursor)
    seen = texts(next(first) for _ in range(3))
    assert seen + texts(logs.read(both, dict(cursor))) == list("012345")


def test_an_unfinished_line_is_left_until_it_is_whole(files: RunFiles, both: list[logs.Source]) -> None:
    cursor: logs.Cursor = {}
    with files.log(1, 0).open("ab") as file:
        file.write(f"{runs.stamp(1)} o half".encode())
    assert texts(logs.read(both, cursor)) == []
    with files.log(1, 0).open("ab") as file:
        file.write(b" and half\n")
    assert texts(logs.read(both, cursor)) == ["half and half"]


def test_what_is_torn_is_shown_once_nobody_writes(files: RunFiles, both: list[logs.Source]) -> None:
    runs.log(files, 0, 1, "whole")
    with files.log(1, 0).open("ab") as file:
        file.write(b"2026-11-23T12:4")
    assert texts(logs.read(both, {}, rest=True)) == ["whole", "2026-11-23T12:4"]
    assert texts(logs.last(both, {}, 1, rest=True)) == ["2026-11-23T12:4"]


def test_following_a_growing_log_gives_every_byte_once(files: RunFiles, both: list[logs.Source]) -> None:
    """A writer appends in pieces of odd sizes; the follower is broken off and taken up again at its cursor."""
    wanted = {rank: [f"{rank}:{number}:" + "x" * (number * 7 % 100) for number in range(300)] for rank in (0, 1)}
    done = threading.Event()

    def write() -> None:
        content = {
            rank: b"".join(f"{runs.stamp(n / 10)} o {text}\n".encode() for n, text in enumerate(texts))
            for rank, texts in wanted.items()
        }
        with files.log(1, 0).open("ab", buffering=0) as zero, files.log(1, 1).open("ab", buffering=0) as one:
            for start in range(0, max(map(len, content.values())), 613):
                zero.write(content[0][start : start + 613])
                one.write(content[1][start : start + 613])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    cursor: logs.Cursor = {}
    seen: dict[int, list[str]] = {0: [], 1: []}
    ended = False
    while not ended:
        ended = True
        for count, record in enumerate(follow(both, cursor, done.is_set)):
            seen[record.source.rank].append(record.text.decode())
            if count == 50:
                ended = False
                break
    writer.join()
    assert seen == wanted
    assert cursor == {(1, rank): files.log(1, rank).stat().st_size for rank in (0, 1)}


def test_tail_over_all_ranks(files: RunFiles, both: list[logs.Source]) -> None:
    for number in range(500):
        runs.log(files, int(number % 5 == 0), number, str(number))
    cursor: logs.Cursor = {}
    assert texts(logs.last(both, cursor, 7)) == [str(number) for number in range(493, 500)]
    runs.log(files, 1, 600, "next")
    assert texts(logs.read(both, cursor)) == ["next"]


def test_tail_reads_no_more_than_it_needs(files: RunFiles, both: list[logs.Source]) -> None:
    with files.log(1, 0).open("wb") as file:
        file.truncate(10 << 30)  # 10 GiB of hole
        file.seek(10 << 30)
        file.write(b"\n")
    runs.log(files, 0, 1, "end")
    assert texts(logs.last(both, {}, 1)) == ["end"]


@pytest.mark.parametrize("at", [0, 1, 777, 1999.5, 3499, 4000])
def test_since_finds_the_first_record_of_that_time(
    files: RunFiles, both: list[logs.Source], at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logfilter, "BLOCK", 512)
    with files.log(1, 0).open("wb") as file:
        for number in range(600):
            file.write(f"{runs.stamp(number)} o {'x' * (number % 90)}\n".encode())
    offset = logfilter.since(str(files.log(1, 0)), runs.stamp(at).encode())
    found = [record.time for record in logs.read(both, {(1, 0): offset})]
    assert found == [runs.stamp(number) for number in range(600) if number >= at]


def test_since_of_no_log_is_its_beginning(files: RunFiles) -> None:
    assert logfilter.since(str(files.log(1, 0)), runs.stamp(1).encode()) == 0


@pytest.mark.parametrize(
    ("text", "stamp"),
    [
        ("30s", "2026-11-23T12:48:30.000000Z"),
        ("5m", "2026-11-23T12:44:00.000000Z"),
        ("1.5h", "2026-11-23T11:19:00.000000Z"),
        ("1d", "2026-11-22T12:49:00.000000Z"),
        ("2026-11-23T12:00:00Z", "2026-11-23T12:00:00.000000Z"),
        ("2026-11-23T13:00:00+02:00", "2026-11-23T11:00:00.000000Z"),
    ],
)
def test_moments(text: str, stamp: str) -> None:
    assert logs.moment(text, datetime.fromtimestamp(runs.BEGIN, timezone.utc)) == stamp


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "yesterday", "99999999999d", "2026-13-01T00:00:00Z"])
def test_no_moments(text: str) -> None:
    with pytest.raises(UsageError, match="--since"):
        logs.moment(text, datetime.now(timezone.utc))


@pytest.mark.parametrize(("text", "ranks"), [("0", [0]), ("0,2-3", [0, 2, 3]), ("3, 1", [1, 3]), ("0-3", [0, 1, 2, 3])])
def test_ranks(text: str, ranks: list[int], files: RunFiles) -> None:
    chosen = logs.choose(logs.sources(files, runs.job(ranks=5)), text)
    assert [source.rank for source in chosen] == ranks


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "-1", "0,,1", "9", "0-999999"])
def test_no_ranks(text: str, both: list[logs.Source]) -> None:
    with pytest.raises(UsageError, match="--rank"):
        logs.choose(both, text)


def test_stage(both: list[logs.Source]) -> None:
    assert [source.rank for source in logs.choose(both, stage=1)] == [1]
    with pytest.raises(UsageError, match="--stage 7"):
        logs.choose(both, stage=7)


def test_a_bad_pattern_says_where() -> None:
    with pytest.raises(UsageError, match="position 0"):
        logs.pattern("(")
