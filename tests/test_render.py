"""Renderers: what they show of given records, and that it fits and stays text."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from tests import runs
from vpipe_cli.render import live, summary, tables, text, view
from vpipe_cli.render import logs as log_lines
from vpipe_cli.runs import logs, outcome
from vpipe_cli.runs.metrics import Meter
from worker.spec.files import RunFiles

HOSTILE = "\x1b]52;c;ZXZpbA==\x07\x1b[2J[/red]\u202eevil\x9b2J 漢字\t" + "long " * 60


def drawn(renderable: RenderableType, width: int = 80) -> list[str]:
    """The lines as they stand on a terminal of that width, colours left out."""
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, record=True, color_system=None)
    console.print(renderable)
    return console.export_text(styles=False).splitlines()


def framed(home: Path, ranks: int, width: int, height: int, **more: object) -> list[str]:
    files = runs.make_run(home, ranks, steps=600)
    runs.add_steps(files, 1, 60, ranks)
    runs.write_json(files.data, {"baseline_loss": 7.412})
    for number in range(100):
        runs.log(files, number % ranks, number, f"line {number} {HOSTILE}")
    job = runs.job(ranks=ranks, steps=600)
    meter = Meter(files, job)
    meter.update()
    sources = logs.sources(files, job)
    now = live.Frame("bert-1", "running", 1, 65.0, runs.BEGIN + 7, meter.progress(), hint="Ctrl-C leaves it running")
    now = replace(now, **more)  # type: ignore[arg-type]
    return drawn(live.frame(now, list(logs.read(sources, {})), log_lines.heads(sources), width, height), width)


@pytest.mark.parametrize("ranks", [1, 2, 5, 64])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 50), (60, 16), (40, 10)])
def test_a_frame_fits_the_terminal(tmp_path: Path, ranks: int, width: int, height: int) -> None:
    lines = framed(tmp_path, ranks, width, height)
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    assert "line 99" in lines[-1]


def test_a_frame_shows_the_numbers(tmp_path: Path) -> None:
    lines = framed(tmp_path, 2, 80, 24)
    assert lines[0] == "bert-1  running  1:05"
    assert lines[1].endswith(" 60/600 10%  eta 0:54")
    assert lines[2].startswith("loss 1.450 █") and lines[2].endswith("▁  baseline 7.412  80.0 samples/s")
    assert " ".join(lines[4].split()) == "┌ 0 0 cpu 0-4 ████▊ 80% 2 2 400 MiB 80.0 ms"
    assert " ".join(lines[5].split()) == "└ 1 1 cpu 5-9 ███▋ 60% 1 1 401 MiB 60.0 ms"
    assert lines[6] == "slow: rank 0 (stage 0) 1.3x the others"
    assert lines[7].endswith("─ Ctrl-C leaves it running")
    assert len(lines) == 24


def test_ranks_that_have_no_room_are_counted(tmp_path: Path) -> None:
    assert "... and 8 more ranks" in framed(tmp_path, 10, 80, 15)


def test_a_frame_before_the_first_step(tmp_path: Path) -> None:
    files = runs.make_run(tmp_path)
    progress = Meter(files, runs.job()).progress()
    lines = drawn(live.frame(live.Frame("bert-1", "starting", 1, 3.0, 0.0, progress), [], {}, 80, 24))
    assert lines[0] == "bert-1  starting  0:03"
    assert lines[2] == "no step yet"
    assert lines[4].split() == ["┌", "0", "0", "cpu", "0-4"]


def test_a_run_that_makes_no_step_any_more_says_so(tmp_path: Path) -> None:
    assert framed(tmp_path, 2, 80, 24, now=runs.BEGIN + 6 + 90)[0].endswith("no step for 1:30")


def test_a_notice_stands_in_the_place_of_the_hint(tmp_path: Path) -> None:
    assert framed(tmp_path, 2, 80, 24, notice="stopping")[7].endswith("─ stopping")


def test_no_control_character_of_a_log_reaches_the_terminal(tmp_path: Path) -> None:
    shown = "\n".join(framed(tmp_path, 2, 160, 50))
    assert "[/red]evil" in shown
    assert not set(shown) & set("\x1b\x07\x9b\u202e")


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    return runs.make_run(tmp_path)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_the_view_is_live_only_where_it_can_be_and_may_be(
    files: RunFiles, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = logs.sources(files, runs.job())
    assert isinstance(view.view("auto", sources, terminal), view.LiveView)
    assert isinstance(view.view("plain", sources, terminal), view.PlainView)
    assert isinstance(view.view("none", sources, terminal), view.NoView)
    assert isinstance(view.view("auto", sources, io.StringIO()), view.PlainView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view.view("auto", sources, terminal), view.PlainView)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert isinstance(view.view("auto", sources, terminal), view.PlainView)


def test_log_lines_are_headed_and_aligned(files: RunFiles) -> None:
    sources = logs.sources(files, runs.job(ranks=11))
    heads = log_lines.heads(sources)
    assert heads[0] == "0/s0 localhost   | "
    assert heads[10] == "10/s10 localhost | "


def test_a_log_line_for_a_pipe_is_plain_and_for_a_terminal_only_its_head_is_coloured(
    files: RunFiles, terminal: io.StringIO
) -> None:
    runs.log(files, 1, 1, HOSTILE)
    sources = logs.sources(files, runs.job())
    (record,) = logs.read(sources, {})
    plain = log_lines.formatter(sources, io.StringIO())(record)
    assert plain.startswith("1/s1 localhost | [/red]evil")

    coloured = log_lines.formatter(sources, terminal)(record)
    assert coloured == "\x1b[35m1/s1 localhost | \x1b[0m" + plain.removeprefix("1/s1 localhost | ")


def test_a_json_line_keeps_the_text_whole_and_is_safe_to_print(files: RunFiles) -> None:
    runs.log(files, 1, 1, HOSTILE, "e")
    (record,) = logs.read(logs.sources(files, runs.job()), {})
    line = log_lines.json_line(record)
    assert line.isascii() and line.isprintable()
    assert json.loads(line) == {
        "time": "2026-11-23T12:49:01.000000Z",
        "rank": 1,
        "stage": 1,
        "host": "localhost",
        "attempt": 1,
        "stream": "stderr",
        "text": HOSTILE,
    }


def test_the_summary_of_a_success(files: RunFiles) -> None:
    runs.succeed(files)
    lines = drawn(summary.summary(outcome.outcome(runs.run(files)), "/x/loss.png"), 120)
    assert lines[0] == f"run {files.folder.name} succeeded: 20 steps in 0:02, 80.0 samples/s"
    assert lines[1] == "  loss     5.250   (guessing by how frequent each token is gives 7.410)"
    assert " ".join(lines[4].split()) == "0 0 5 80.0 ms 20% 400 MiB"
    assert f"  weights  {'a1' * 32}" in lines
    assert f"  folder   {files.folder}" in lines
    assert "  picture  /x/loss.png" in lines
    assert not any("left out" in line for line in lines)


def test_the_summary_counts_records_that_were_left_out(files: RunFiles) -> None:
    runs.succeed(files)
    ended = runs.result().model_copy(update={"records_left_out": 3})
    files.result.write_text(ended.model_dump_json())
    assert "  data     3 left out as wrong (on_bad_record: skip)" in drawn(
        summary.summary(outcome.outcome(runs.run(files))), 120
    )


def test_the_summary_of_a_failure_names_the_first_to_die(files: RunFiles) -> None:
    runs.fail(files)
    lines = drawn(summary.summary(outcome.outcome(runs.run(files))), 160)
    killed = "rank 1 (localhost, stage 1) killed by SIGKILL (out of memory, or kill -9)"
    assert lines[0] == f"run {files.folder.name} FAILED at step 11: {killed}"
    assert lines[2:5] == ["  the last lines of rank 1:", "  | the last thing it said", ""]
    assert lines[5] == "  then  rank 0 failed after it"
    assert lines[6] == f"  log   {files.log(1, 1)}"
    assert lines[7] == f"  next  vpipe logs {files.folder.name} --rank 1"


def test_a_failure_fits_one_screen_and_its_lines_stay_text(files: RunFiles) -> None:
    runs.fail(files)
    ended = outcome.outcome(runs.run(files))
    assert ended.failure is not None
    failure = replace(ended.failure, last_lines=[f"{number} {HOSTILE}" for number in range(30)])
    lines = drawn(summary.summary(replace(ended, failure=failure), height=24), 80)
    assert len(lines) < 24
    assert not set("".join(lines)) & set("\x1b\x07\x9b\u202e")


def test_a_rank_without_an_exit_record_is_told_of_by_its_log(files: RunFiles) -> None:
    runs.fail(files)
    files.exit(1, 1).unlink()
    ended = outcome.outcome(runs.run(files))
    assert ended.failure is not None and ended.failure.last_lines == ["the last thing it said"]


def test_a_run_that_ended_without_a_word_is_lost(files: RunFiles) -> None:
    lines = drawn(summary.summary(outcome.outcome(runs.run(files))), 200)
    assert lines[0].endswith("lost at step 0 of 20")
    assert f"  {files.hostd_log}" in lines


def test_runs_as_a_table(files: RunFiles) -> None:
    runs.succeed(files)
    stands = outcome.outcome(runs.run(files))
    lines = drawn(tables.runs([stands], runs.BEGIN + 300, 300), 300)
    assert lines[0].split() == ["run", "state", "step", "loss", "age", "folder"]
    assert lines[1].split() == [files.folder.name, "succeeded", "20/20", "5.250", "5m", str(files.folder)]
    narrow = drawn(tables.runs([stands], runs.BEGIN + 300, 80), 80)
    assert narrow[1].split() == [files.folder.name, "succeeded", "20/20", "5.250", "5m"]


def test_one_run_as_a_table(files: RunFiles) -> None:
    runs.state(files, "running")
    runs.add_steps(files, 1, 5)
    runs.add_exit(files, 0)
    with runs.alive(files):
        lines = drawn(tables.run(outcome.outcome(runs.run(files)), runs.BEGIN + 60), 120)
    assert lines[0] == f"run {files.folder.name} running  step 5/20 (25%)  loss 6.500  started 1m ago"
    assert " ".join(lines[4].split()) == "0 0 localhost cpu succeeded finished"
    assert " ".join(lines[5].split()) == "1 1 localhost cpu starting"


def test_plain_lines_come_when_something_changes(files: RunFiles) -> None:
    stream, seconds = io.StringIO(), [0.0]
    shown = view.PlainView(stream, logs.sources(files, runs.job()), lambda: seconds[0])
    meter = Meter(files, runs.job())
    now = live.Frame("bert-1", "running", 1, 1.0, 0.0, meter.progress())
    shown.show(now)
    shown.show(now)
    runs.add_steps(files, 1, 12)
    meter.update()
    shown.show(replace(now, progress=meter.progress()))
    seconds[0] = 5.0
    shown.show(replace(now, progress=meter.progress()))
    shown.show(replace(now, progress=meter.progress(), notice="stopping"))
    assert stream.getvalue().splitlines() == [
        "run bert-1: running",
        "step 12/20  loss 6.250  80.0 samples/s  eta 0:01",
        "stopping",
    ]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (text.clock(35.4), "0:35"),
        (text.clock(3723), "1:02:03"),
        (text.clock(90000), "1d 1h"),
        (text.age(59), "59s"),
        (text.age(7300), "2h"),
        (text.span(0.000412), "0.41 ms"),
        (text.span(0.0121), "12.1 ms"),
        (text.span(3.2), "3.20 s"),
        (text.size(0), "0 B"),
        (text.size(812 << 20), "812 MiB"),
        (text.size(1.4 * 2**30), "1.4 GiB"),
        (text.size(1010 << 20), "1.0 GiB"),
        (text.loss(None), "-"),
        (text.loss(0.012345), "0.01235"),
        (text.rate(1234.5), "1234"),
        (text.rate(9.99), "10.0"),
        (text.bar(0.5, 4), "██  "),
        (text.bar(1.7, 2), "██"),
        (text.sparkline([(1, 3.0), (2, 2.0), (3, 1.0)], 10), "█▅▁"),
        (text.sparkline([(1, 3.0)] * 5, 3), "▁▁▁"),
        (text.sparkline([], 3), ""),
        (text.numbers([0]), "0"),
        (text.numbers([0, 1, 3]), "0, 1 and 3"),
        (text.numbers(range(20)), "0, 1, 2, 3, 4, 5 and 14 more"),
    ],
)
def test_short_texts(found: str, wanted: str) -> None:
    assert found == wanted
