"""Following a run: its numbers as they grow, its end, and Ctrl-C on a real terminal against a real hostd."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import runs
from tests.rig import SLEEP, Rig, wait_for
from tests.terminal import Terminal
from vpipe_cli import plot
from vpipe_cli.runs import watch
from vpipe_cli.runs.metrics import Curve, Meter, last_step
from worker.spec.files import RunFiles, write_atomic

FOLLOW = """
import sys
from vpipe_cli.runs import store, state, watch
watch.TWICE = float(sys.argv[1])
end = watch.follow(store.find())
sys.exit(state.EXIT_CODES.get(end, 0))
"""


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    return runs.make_run(tmp_path)


def test_progress_grows_with_the_files(files: RunFiles) -> None:
    meter = Meter(files, runs.job())
    assert (meter.progress().step, meter.progress().loss, meter.progress().ranks[0].timing) == (0, None, None)
    runs.add_steps(files, 1, 5)
    meter.update()
    runs.add_steps(files, 6, 8)
    meter.update()
    now = meter.progress()
    assert (now.step, now.steps, now.time) == (8, 20, runs.BEGIN + 0.8)
    assert [step for step, _ in now.losses] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert now.loss == pytest.approx(6.55)
    assert now.samples_per_second == pytest.approx(80)
    assert now.eta == pytest.approx(1.2)
    first = now.ranks[0].timing
    assert first is not None and first.memory == 400 << 20
    assert (first.forward, first.backward, first.update) == pytest.approx((0.02, 0.05, 0.01))
    assert first.idle_share == pytest.approx(0.2)


def test_the_first_step_tells_no_speed(files: RunFiles) -> None:
    runs.add_steps(files, 1, 1)
    meter = Meter(files, runs.job())
    meter.update()
    now = meter.progress()
    assert (now.step, now.samples_per_second, now.eta) == (1, None, None)
    assert now.ranks[0].timing is not None


def test_a_torn_line_of_numbers_is_read_once_it_is_whole(files: RunFiles) -> None:
    line = runs.step_metrics(1, 1, 1).line()
    meter = Meter(files, runs.job())
    files.metrics(1).write_text("torn by a full disk\n" + line[:30])
    meter.update()
    assert meter.progress().step == 0 and last_step(files.metrics(1)) is None
    with files.metrics(1).open("a") as file:
        file.write(line[30:] + "\n")
    meter.update()
    assert meter.progress().step == 1 and last_step(files.metrics(1)) == runs.step_metrics(1, 1, 1)


def test_the_baseline_is_known_once_the_data_is_open(files: RunFiles) -> None:
    meter = Meter(files, runs.job())
    assert meter.progress().baseline_loss is None
    runs.write_json(files.data, {"baseline_loss": 7.5})
    assert meter.progress().baseline_loss == 7.5


def test_a_curve_of_any_length_has_few_points_and_the_same_mean() -> None:
    curve = Curve(limit=8)
    for step in range(1, 65):
        curve.add(step, float(step))
    assert curve.points() == [(8 * k + 4.5, 8 * k + 4.5) for k in range(8)]


def test_following_a_run_that_has_ended_shows_it_from_its_beginning(
    files: RunFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(50):
        runs.log(files, number % 2, number, f"line {number}")
    runs.succeed(files)
    before = signal.getsignal(signal.SIGINT)
    assert watch.follow(runs.run(files)) == "succeeded"
    assert signal.getsignal(signal.SIGINT) is before
    out = capsys.readouterr().out
    assert re.findall(r"line (\d+)", out) == [str(number) for number in range(50)]
    assert "step 20/20  loss 5.450" in out
    assert f"run {files.folder.name} succeeded: 20 steps" in out


def test_the_logs_of_every_attempt_are_followed(files: RunFiles, capsys: pytest.CaptureFixture[str]) -> None:
    runs.log(files, 0, 1.0, "before it broke")
    runs.state(files, "restarting", attempt=2)
    files.attempt(2).mkdir()
    files.log(2, 0).write_text(f"{runs.stamp(2.0)} o after that\n")
    runs.state(files, "succeeded", attempt=2)
    assert watch.follow(runs.run(files)) == "succeeded"
    out = capsys.readouterr().out
    assert out.index("before it broke") < out.index("after that")


def test_with_json_nothing_is_shown_on_standard_output(files: RunFiles, capsys: pytest.CaptureFixture[str]) -> None:
    runs.fail(files)
    assert watch.follow(runs.run(files), "json") == "failed"
    out, err = capsys.readouterr()
    assert out == "" and "killed by SIGKILL" in err


def test_the_picture_of_the_loss_is_drawn_once(files: RunFiles) -> None:
    runs.succeed(files)
    assert plot.ensure(runs.run(files)) == str(files.loss_plot)
    assert files.loss_plot.read_bytes().startswith(b"\x89PNG")
    assert files.loss_plot.stat().st_mode & 0o777 == 0o600
    files.loss_plot.write_bytes(b"kept")
    plot.ensure(runs.run(files))
    assert files.loss_plot.read_bytes() == b"kept"


def test_there_is_no_picture_of_a_run_without_a_step(files: RunFiles) -> None:
    assert plot.ensure(runs.run(files)) == "none: the run made no step"
    files.job.unlink()
    assert plot.ensure(runs.run(files)) == "none: the run never began"
    assert not files.loss_plot.exists()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A real hostd with one rank that does nothing but live, in a home of its own."""
    (tmp_path / "runs").mkdir()
    made = Rig(tmp_path / "runs" / "bert-20261123-124900-0001")
    made.start("print('hello', flush=True)\n" + SLEEP)
    made.files.metrics(0).parent.mkdir()
    write_atomic(made.files.job, runs.job(ranks=1).model_dump_json())
    runs.add_steps(made.files, 1, 5, ranks=1)
    yield made
    made.files.stop.touch()
    made.end()


@pytest.fixture
def follower(rig: Rig, tmp_path: Path) -> Iterator[Callable[[float], Terminal]]:
    """Starts a follower of that run and waits until its live view stands."""
    started: list[Terminal] = []

    def start(twice: float) -> Terminal:
        env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        env |= {"VPIPE_HOME": str(tmp_path), "TERM": "xterm-256color"}
        started.append(Terminal([sys.executable, "-c", FOLLOW, str(twice)], env))
        wait_for(lambda: started[0].shows("hello") and started[0].shows("5/20"))
        return started[0]

    yield start
    for terminal in started:
        terminal.process.kill()
        terminal.process.wait()


def test_ctrl_c_once_leaves_the_run_alone(rig: Rig, follower: Callable[[float], Terminal]) -> None:
    terminal = follower(0.1)
    terminal.press("\x03")
    assert terminal.end() == 0
    _, _, after = terminal.drawn.rpartition("\x1b[?1049l")  # back on the screen it came from, with the cursor
    assert f"vpipe logs -f {rig.files.folder.name}" in after
    assert terminal.drawn.rindex("\x1b[?25h") > terminal.drawn.rindex("\x1b[?25l")
    assert rig.states() == ["starting", "running"]


def test_ctrl_c_twice_stops_the_run_and_waits_for_its_end(rig: Rig, follower: Callable[[float], Terminal]) -> None:
    terminal = follower(60.0)
    terminal.press("\x03")
    wait_for(lambda: terminal.shows("again within 60 s stops the run"))
    terminal.press("\x03")
    assert terminal.end() == 103
    assert "stopped" in terminal.drawn.rpartition("\x1b[?1049l")[2]
    assert rig.states()[-1] == "stopped"


def test_sigterm_leaves_the_terminal_clean_and_the_run_alone(rig: Rig, follower: Callable[[float], Terminal]) -> None:
    terminal = follower(60.0)
    terminal.process.terminate()
    assert terminal.end() == 0
    assert "\x1b[?1049l" in terminal.drawn
    assert rig.states() == ["starting", "running"]
