"""Rows of a sweep side by side: what a run measured, the Pareto front, tables, files, pictures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests import runs
from vpipe_cli.render import sweep as drawn
from vpipe_cli.render import sweep_table
from vpipe_cli.render.console import console
from vpipe_cli.render.sweep_plot import plots
from vpipe_cli.sweep import export, pictures
from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.memory import ran_out
from vpipe_cli.sweep.predict import choice
from vpipe_cli.sweep.records import AxisRecord, Definition, Prediction, Row, Trial
from vpipe_cli.sweep.results import Line, lines, pareto, row_of, varied, without_warmup
from vpipe_cli.sweep.series import main_axis, series
from vpipe_cli.sweep.watch import Look

MIB = 1 << 20


def definition(*values: tuple[str, ...], axes: tuple[str, ...] = ("recompute_ratio", "partition")) -> Definition:
    trials = [
        Trial(
            number=number, identity=f"id{number}", values=list(point), slots=["localhost:cpu"], partition=[5, 5],
            overrides=[f"{axis}={value}" for axis, value in zip(axes, point, strict=True)],
            recompute_ratio=[0.0, 0.0],
        )
        for number, point in enumerate(values, start=1)
    ]  # fmt: skip
    return Definition(
        sweep="tiny-00000000", name="tiny", created=0.0, cwd="/", path="my jobs/c.yml", folder="/", command="",
        axes=[AxisRecord(name=axis, key=f"pipeline.{axis}") for axis in axes], trials=trials,
        order=[trial.identity for trial in trials], choice="id1",
    )  # fmt: skip


def row(number: int, rate: float, mib: int, **more: object) -> Row:
    given = {"state": "succeeded", "samples_per_second": rate, "step_seconds": 8 / rate, "loss": 5.0, **more}
    return Row.model_validate({"number": number, "identity": f"id{number}", "memory_bytes": [mib * MIB], **given})


SWEEP = definition(("0", "[5, 5]"), ("0.5", "[5, 5]"), ("1", "[5, 5]"), ("0", "[4, 6]"))
ROWS = {
    "id1": row(1, 100.0, 600, idle=[0.1, 0.3]),
    "id2": row(2, 90.0, 500),
    "id3": row(3, 80.0, 550),
    "id4": Row(number=4, identity="id4", state="oom", stage=1, cause="OutOfMemoryError: no", run="r4"),
}


def table() -> list[Line]:
    return lines(SWEEP, ROWS)


def test_a_run_is_measured_without_its_warm_up(tmp_path: Path) -> None:
    files = runs.make_run(tmp_path, steps=20)
    runs.succeed(files)
    found = row_of(SWEEP.trials[0], runs.run(files), 5)
    assert (found.state, found.measured_steps, found.steps) == ("succeeded", 15, 20)
    assert found.samples_per_second == pytest.approx(80.0) and found.step_seconds == pytest.approx(0.1)
    assert (found.peak, found.idle_share, found.loss) == (400 * MIB, 0.2, 5.25)
    assert [len(without_warmup(range(length), None)) for length in (1, 2, 20)] == [1, 1, 18]  # type: ignore[arg-type]


def test_out_of_memory_is_a_result_with_stage_and_peak(tmp_path: Path) -> None:
    files = runs.make_run(tmp_path)
    runs.state(files, "running")
    runs.add_steps(files, 1, 3)
    cause = "exit status 1: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    runs.add_exit(files, 1, code=1, cause=cause)
    first = {"rank": 1, "stage": 1, "host": "localhost", "cause": cause, "step": 3}
    runs.state(files, "failed", first_failure=first)
    found = row_of(SWEEP.trials[0], runs.run(files), None)
    assert (found.state, found.stage, found.peak, found.is_settled) == ("oom", 1, 401 * MIB, True)


def test_other_failures_are_settled_only_if_they_would_come_again(tmp_path: Path) -> None:
    files = runs.make_run(tmp_path)
    runs.fail(files)
    found = row_of(SWEEP.trials[0], runs.run(files), None)
    assert (found.state, found.stage, found.is_settled) == ("failed", 1, False)
    runs.add_exit(files, 1, code=1, cause="the loss is nan", permanent=True)
    assert row_of(SWEEP.trials[0], runs.run(files), None).is_settled


@pytest.mark.parametrize(
    ("cause", "is_oom"),
    [
        (
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
            True,
        ),
        ("torch.OutOfMemoryError: x", True),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate; MemoryError", True),
        ("killed by SIGKILL (out of memory, or kill -9)", False),
        ("loss nan", False),
    ],
)
def test_signs_of_too_little_memory(cause: str, is_oom: bool) -> None:
    assert ran_out(cause) is is_oom


def test_change_pareto_and_choice() -> None:
    assert [line.change for line in table()] == [0.0, pytest.approx(-0.1), pytest.approx(-0.2), None]
    assert [export.marks(line) for line in table()] == ["*P", "*", "", ""]
    assert pareto([row(1, 5, 5), row(2, 5, 5), row(3, 6, 9), row(4, 4, 5)]) == {"id1", "id3"}


def test_the_planner_chooses_the_fastest_that_fits_else_the_least_recomputed() -> None:
    def trial(number: int, partition: list[int], ratio: float, **prediction: object) -> Trial:
        expected = Prediction.model_validate(prediction)
        given = {"partition": partition, "recompute_ratio": [ratio, ratio], "prediction": expected}
        return SWEEP.trials[0].model_copy(update={"identity": f"id{number}", **given})

    auto = [[5, 5]] * 3
    blind = [trial(1, [4, 6], 0.0), trial(2, [5, 5], 1.0), trial(3, [5, 5], 0.5)]
    assert choice(blind, auto) == "id3"
    timed = [
        trial(1, [4, 6], 0.0, step_seconds=1.0, fits=False),
        trial(2, [5, 5], 1.0, step_seconds=3.0, fits=True),
        trial(3, [5, 5], 0.5, step_seconds=2.0, fits=True),
    ]
    assert choice(timed, auto) == "id3"
    assert choice([blind[0], blind[0]], auto[:2]) is None


def test_the_forms_of_the_results(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in export.jsonl(SWEEP, table()).splitlines()]
    assert rows[1]["parameters"] == {"pipeline.recompute_ratio": "0.5", "pipeline.partition": "[5, 5]"}
    assert rows[1]["command"] == "vpipe launch 'my jobs/c.yml' recompute_ratio=0.5 'partition=[5, 5]'"
    (_, second, *_) = csv.DictReader(io.StringIO(export.as_csv(SWEEP, table())))
    assert (second["pipeline.recompute_ratio"], second["peak_memory_bytes"]) == ("0.5", str(500 * MIB))
    assert "| 0.5 | [5, 5] | succeeded | 90.0 | -10.0% | 500 MiB | - | 5.000 | * |" in export.markdown(SWEEP, table())


def shown(width: int, look: Look | None = None) -> str:
    out = io.StringIO()
    target = console(out)
    target.width = width
    look = look or Look(SWEEP, table(), "done")
    target.print(drawn.summary(look, SweepFiles(Path("/x")), "none", width))
    return out.getvalue()


def test_the_summary_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(120)
    assert "sweep tiny-00000000 done: 4 of 4 trials have ended" in text
    assert "trial 4 out of memory in stage 1: OutOfMemoryError: no (vpipe logs r4)" in text
    assert "the planner's choice, recompute_ratio=0 partition=[5, 5]: 100 samples/s, the best found" in text
    assert "  vpipe launch 'my jobs/c.yml' recompute_ratio=1 'partition=[5, 5]'\n" in text
    gone = Look(SWEEP, lines(SWEEP, {}), "", "the disk of /x is full")
    assert "the disk of /x is full\n  the same command again goes on with the rest" in shown(80, gone)


def test_narrow_tables_leave_out_what_matters_least() -> None:
    kept = {
        width: [name for name in sweep_table.NUMBERS if name in shown(width).splitlines()[2]] for width in (60, 80, 120)
    }
    assert kept[60] == ["samples/s", "peak"] and kept[120] == list(sweep_table.NUMBERS)


def test_a_frame_fits_its_screen_and_shows_what_runs() -> None:
    many = definition(*((str(number), "auto") for number in range(300)))
    rows = {f"id{number}": row(number, 10.0, 100) for number in range(1, 200)}
    rows["id250"] = Row(number=250, identity="id250", state="running", run="r250", step=3, steps=9)
    out = io.StringIO()
    target = console(out)
    target.width = 80
    target.print(drawn.frame(Look(many, lines(many, rows), ""), "", 65.0, 80, 24))
    text = out.getvalue().splitlines()
    assert len(text) <= 24 and max(map(len, text)) <= 80
    assert "199/300 trials  1:05" in text[0] and text[-1].startswith("trial 250 running  step 3/9  r250")
    assert any(line.startswith("250 ") for line in text)
    assert "... and 283 more trials" in "\n".join(text)


def test_lines_tell_each_change_once() -> None:
    out = io.StringIO()
    view = drawn.Lines(out)
    running = {**ROWS, "id3": Row(number=3, identity="id3", state="running", run="r3")}
    for rows in (running, running, ROWS, ROWS):
        view.show(Look(SWEEP, lines(SWEEP, rows), ""))
    told = out.getvalue().splitlines()
    assert len(told) == 5
    assert told[3] == "trial 3/4  recompute_ratio=1 partition=[5, 5]  runs as r3"
    assert told[4].startswith("trial 3/4  recompute_ratio=1 partition=[5, 5]  succeeded  80.0 samples/s  550 MiB peak")


def test_curves_over_the_key_with_numbers() -> None:
    axis = main_axis(SWEEP, table())
    found = series(SWEEP, table(), axis)
    assert axis == 0 and [one.label for one in found] == ["[5, 5]", "[4, 6]"]
    assert found[0].positions == [0.0, 0.5, 1.0] and found[0].ticks is None
    words = definition(("a", "x"), ("b", "x"))
    assert series(words, lines(words, {}), 0)[0].ticks == ["a", "b"] and varied(words) == [0]


def test_plots_and_picture() -> None:
    text = "\n".join(plots(SWEEP, table(), 60))
    assert "time of a step" in text and "600 MiB" in text and max(map(len, text.splitlines())) <= 60
    many = definition(*((str(number), "auto") for number in range(20)))
    rows = {f"id{number}": row(number, 10.0 + number, 100 + number) for number in range(1, 21)}
    drawn_field = plots(many, lines(many, rows), 80)
    assert drawn_field[0].startswith("samples/s over peak memory") and "P" in drawn_field[-3]
    measured = [line for line in table() if line.row.state == "succeeded"]
    assert pictures.draw(SWEEP, measured).startswith(b"\x89PNG")
