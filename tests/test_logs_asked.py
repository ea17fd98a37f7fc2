"""`vpipe logs` of restarted runs, hostile logs, holes; copies; and that a secret comes out nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import canary, runs
from vpipe_cli.app import app
from vpipe_cli.runs import logs
from worker import logfilter
from worker.errors import UsageError
from worker.spec.files import RunFiles

HOSTILE = {
    "colour": (b"\x1b[31mred\x1b[0m", "red"),
    "clear screen": (b"a\x1b[2J\x1b[Hb", "ab"),
    "clipboard": (b"a\x1b]52;c;ZXZpbA==\x07b", "ab"),
    "title": (b"\x1b]0;evil\x1b\\a", "a"),
    "C1": ("a\x9b2Jb\x85c".encode(), "abc"),
    "markup": (b"[/red] [bold]x[/] [link=http://a]b[/link]", "[/red] [bold]x[/] [link=http://a]b[/link]"),
    "bidi": ("a\u202eb\u2066c".encode(), "abc"),
    "bar": (b" 10%|#   |\r 55%|##  |\r100%|####|", "100%|####|"),
    "no UTF-8": (b"\xff\xfe ok", "\ufffd\ufffd ok"),
    "emoji code": (b":smile: \xf0\x9f\x98\x80", ":smile: \U0001f600"),
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    made = runs.make_run(tmp_path)
    runs.succeed(made)
    return made


def lines(*arguments: str) -> list[str]:
    ended = CliRunner().invoke(app, ["logs", *arguments], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return [line.partition(" | ")[2] for line in ended.stdout.splitlines()]


@pytest.mark.parametrize("raw, shown", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_line_is_only_text(files: RunFiles, raw: bytes, shown: str) -> None:
    runs.log(files, 0, 1, raw)
    assert [line.strip() for line in lines()] == [shown]
    assert raw in files.log(1, 0).read_bytes()  # on disk it is as it was


def test_a_line_of_a_megabyte_is_one_line(files: RunFiles) -> None:
    runs.log(files, 0, 1, b"\x1b[1m" + b"x" * (1 << 20))
    assert [len(line) for line in lines()] == [1 << 20]


def restarted(files: RunFiles) -> None:
    """A second attempt, which says something else."""
    runs.log(files, 0, 1, "first")
    files.attempt(2).mkdir()
    files.log(2, 0).write_bytes(files.log(1, 0).read_bytes().replace(b"first", b"second"))


def test_the_newest_attempt_unless_asked_otherwise(files: RunFiles) -> None:
    restarted(files)
    assert lines() == ["second"]
    assert lines("--attempt", "1") == ["first"]
    assert sorted(lines("--all-attempts")) == ["first", "second"]
    shown = CliRunner().invoke(app, ["logs", "--all-attempts"]).stdout
    assert "#1 0/s0 localhost | first" in shown and "#2 0/s0 localhost | second" in shown
    assert isinstance(CliRunner().invoke(app, ["logs", "--attempt", "3"]).exception, UsageError)


def test_only_one_host(files: RunFiles) -> None:
    runs.log(files, 0, 1, "x")
    assert lines("--host", "localhost") == ["x"]
    assert isinstance(CliRunner().invoke(app, ["logs", "--host", "elsewhere"]).exception, UsageError)


def test_until(files: RunFiles) -> None:
    for number in range(5):
        runs.log(files, number % 2, number, str(number))
    assert lines("--until", runs.stamp(2)) == ["0", "1", "2"]


def test_copies_are_continued_and_never_mixed(files: RunFiles, tmp_path: Path) -> None:
    runs.log(files, 0, 1, "a")
    lines("--sync", str(tmp_path / "copy"))
    copy = tmp_path / "copy" / files.folder.name / "attempt-1" / "rank-0.log"
    runs.log(files, 0, 2, b"b\xff")
    lines("--sync", str(tmp_path / "copy"))
    assert copy.read_bytes() == files.log(1, 0).read_bytes()
    assert copy.stat().st_mode & 0o777 == 0o600
    copy.write_bytes(b"something else\n")
    lines("--sync", str(tmp_path / "copy"))
    assert copy.read_bytes() == files.log(1, 0).read_bytes()


@pytest.mark.parametrize("block", [64, 4096, logfilter.BLOCK])
def test_a_hole_is_passed_over(files: RunFiles, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log over its limit keeps its head and its tail; what was between reads as zeros."""
    monkeypatch.setattr(logfilter, "BLOCK", block)
    runs.log(files, 0, 1, "head")
    begin = files.log(1, 0).stat().st_size
    with files.log(1, 0).open("r+b") as file:
        file.truncate(begin + 3_000_001)
    runs.log(files, 0, 2, "tail")
    found = [(end, line[30:]) for end, line in logfilter.forward(str(files.log(1, 0)))]
    size = os.path.getsize(files.log(1, 0))
    assert found == [(begin, b"head"), (size, b"tail")]
    back = [(end, line[30:]) for end, line in logfilter.backward(str(files.log(1, 0)))]
    assert [line for _, line in back] == [b"tail", b"head"]
    assert lines("--since", runs.stamp(1.5)) == ["tail"]
    cursor: logs.Cursor = {(1, 0): begin}
    source = logs.sources(files, runs.job())[:1]
    assert [record.text for record in logs.read(source, cursor)] == [b"tail"]
    assert cursor == {(1, 0): size}


def test_the_canary_finds_what_leaks(tmp_path: Path) -> None:
    (tmp_path / "open").write_text(f"key={canary.SECRET}")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "kept").write_text(canary.SECRET)
    (tmp_path / "kept").chmod(0o600)
    (tmp_path / "rank-0.log").write_text(canary.SECRET)
    (tmp_path / "rank-0.log").chmod(0o600)
    assert sorted(path.name for path in canary.in_files(tmp_path)) == ["open", "rank-0.log"]
    assert canary.in_argv() == []
