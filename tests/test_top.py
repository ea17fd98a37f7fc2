"""`vpipe top`: the stages of a run at work, on a real terminal, in one frame, and as a document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from tests import runs, tmux
from tests.rig import wait_for
from tests.test_render import drawn
from vpipe_cli.app import app
from vpipe_cli.render import chart, live
from vpipe_cli.runs.look import Looker, doing
from vpipe_cli.runs.slow import factors
from vpipe_cli.runs.state import Standing
from worker import progress
from worker.spec.files import RunFiles
from worker.spec.job import Plan, Predicted

HINT = "Ctrl-C leaves it running"


def plan(*replicas: int, predicted: list[float] | None = None) -> Plan:
    stages = len(replicas)
    given = {"partition": [2] * stages, "recompute_ratio": [0.0] * stages, "reason": "a test", "replicas": [*replicas]}
    expected = predicted and Predicted(
        step_seconds=1.0, lower_bound_seconds=1.0, stage_seconds=predicted, memory_bytes=[1] * stages
    )
    return Plan.model_validate({**given, "predicted": expected})


def frame(home: Path, ranks: int = 2, steps: int = 60) -> live.Frame:
    files = runs.make_run(home, ranks, steps=600)
    runs.add_steps(files, 1, steps, ranks)
    runs.write_json(files.data, {"baseline_loss": 4.0})
    return Looker(runs.run(files), runs.job(ranks=ranks, steps=600)).frame(Standing("running", 1), hint=HINT)


@pytest.mark.parametrize("ranks", [1, 2, 5, 64])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 50), (60, 16), (40, 10)])
def test_a_frame_fits_the_terminal(tmp_path: Path, ranks: int, width: int, height: int) -> None:
    lines = drawn(live.whole(frame(tmp_path, ranks), width, height), width)
    assert len(lines) <= height and max(map(cell_len, lines)) <= width
    assert lines[-1].endswith(HINT)


def test_a_frame_shows_the_pipeline(tmp_path: Path) -> None:
    lines = drawn(live.whole(frame(tmp_path), 80, 24), 80)
    assert lines[2] == "loss 1.450  baseline 4.000  80.0 samples/s  100 ms a step"
    assert " ".join(lines[3].split()) == "stage rank device layers busy in flight versions memory time"
    assert " ".join(lines[4].split()) == "┌ 0 0 cpu 0-4 ████▊ 80% 2 2 400 MiB 80.0 ms"
    assert " ".join(lines[5].split()) == "└ 1 1 cpu 5-9 ███▋ 60% 1 1 401 MiB 60.0 ms"
    assert lines[6] == "slow: rank 0 (stage 0) 1.3x the others"
    assert len(lines) == 24


def test_a_wide_terminal_shows_what_ranks_do(tmp_path: Path) -> None:
    files = runs.make_run(tmp_path)
    runs.add_steps(files, 1, 5)
    for rank, record in enumerate([b"9\t6\tforward of minibatch 5\t\t", b"8\t6\tx\tactivation h\x1b[2J\t"]):
        files.progress(1, rank).write_bytes(record + b"\0old")
    now = Looker(runs.run(files), runs.job()).frame(Standing("running", 1))
    text = "\n".join(drawn(live.whole(now, 160, 50), 160))
    assert "  forward of minibatch 5" in text and "  waits for activation h" in text and "\x1b" not in text
    assert "minibatch 5" not in "\n".join(drawn(live.whole(now, 80, 24), 80))


def test_what_a_rank_says_of_itself_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_now", progress._Progress())
    files = runs.make_run(tmp_path)
    assert doing(files, 1, 0) == ""
    progress.open_at(files.progress(1, 0))
    progress.at(3, "update of step 3")
    assert doing(files, 1, 0) == "update of step 3"
    progress.wait_for("gradients of rank 1")
    assert doing(files, 1, 0) == "waits for gradients of rank 1"


def test_who_is_slow_is_measured_against_the_prediction_else_against_the_others() -> None:
    assert factors({0: 0.1, 1: 0.1, 2: 0.25}, plan(1, 1, 1)) == {2: pytest.approx(2.5)}
    assert factors({0: 0.2, 1: 0.2, 2: 0.1}, plan(2, 1)) == {}, "two replicas take turns: their pace is that of one"
    meant = plan(1, 1, 1, predicted=[0.01, 0.01, 0.03])
    assert factors({0: 0.1, 1: 0.1, 2: 0.3}, meant) == {}, "all are ten times as slow as predicted"
    assert factors({0: 0.1, 1: 0.2, 2: 0.3}, meant) == {1: pytest.approx(2.0)}
    assert factors({0: 0.1}, plan(1)) == factors({}, plan(1, 1)) == {}


def test_slow_ranks_are_shown_where_not_all_can_be(tmp_path: Path) -> None:
    now = frame(tmp_path, ranks=64)
    lines = drawn(live.whole(now, 80, 16), 80)
    assert any(line.startswith("┌ 0 ") for line in lines) and any("more ranks" in line for line in lines)


def test_a_curve_falls_from_the_upper_left_to_the_lower_right() -> None:
    lines = chart.curve([(float(step), 100.0 - step) for step in range(1, 101)], 20.0, 40, 9)
    assert len(lines) == 9 and max(map(len, lines)) <= 40
    assert lines[0].startswith("  99.00 │⠒") or lines[0][9] != " "
    assert lines[7].startswith("0.000") or lines[7].strip().split(" ")[0].startswith("0.")
    assert lines[7].rstrip()[-1] not in " ╌" and "base │╌" in lines[6]
    assert lines[8].startswith("        └1─") and lines[8].endswith("step 100")


def test_a_curve_of_one_value_and_of_none() -> None:
    assert len(chart.curve([(1.0, 5.0)], None, 40, 6)) == 6
    assert chart.curve([], 3.0, 40, 6) == chart.curve([(1.0, 5.0)], None, 12, 6) == []


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunFiles]:
    """A run that has done five steps and holds its lock."""
    files = runs.make_run(tmp_path / "home")
    runs.state(files, "running")
    runs.add_steps(files, 1, 5)
    with runs.alive(files):
        yield files


def test_without_a_terminal_it_prints_one_frame(running: RunFiles, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["top", running.folder.name], env={"VPIPE_HOME": str(tmp_path / "home")})
    assert result.exit_code == 0 and result.stdout.count("5/20") == 1
    assert "┌ 0" in result.stdout and HINT not in result.stdout and "\x1b" not in result.stdout


def test_the_document(running: RunFiles, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["top", "-o", "json"], env={"VPIPE_HOME": str(tmp_path / "home")})
    document = json.loads(result.stdout)
    assert (document["schema"], document["run"], document["state"]) == (1, running.folder.name, "running")
    assert (document["step"], document["steps"], document["loss"]) == (5, 20, pytest.approx(6.7))
    first, second = document["ranks"]
    assert (first["layers"], first["timing"]["in_flight"], first["timing"]["versions"]) == ([[0, 4]], 2, 2)
    assert first["slow"] == pytest.approx(4 / 3) and second["slow"] is None


def test_a_screen_that_changes_its_size_and_is_left(running: RunFiles, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vpipe_cli.app", "top", running.folder.name]
    with tmux.screen(tmp_path, 80, 24, command, {"VPIPE_HOME": str(tmp_path / "home")}) as screen:
        for width, height in ((80, 24), (60, 16), (160, 50)):
            screen.resize(width, height)
            last = f"{'─' * (width - len(HINT) - 1)} {HINT}"
            wait_for(lambda last=last, height=height: screen.lines()[height - 1 :] == [last])
            lines = screen.lines()
            assert lines[0].startswith(f"{running.folder.name}  running  ") and "5/20 25%" in lines[1]
            assert sum(line.startswith("┌ 0") for line in lines) == 1, "nothing of the former size is left"
        screen.press("C-c")
        wait_for(lambda: screen.shows("ended with 0"))
        assert screen.shows("└ 1") and not screen.shows(HINT)
