"""`vpipe report`: the page opens from disk without a network and shows the run's own numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import browser, runs
from vpipe_cli.app import app
from vpipe_cli.report.collect import collect
from vpipe_cli.report.page import page
from vpipe_cli.report.steps import POINTS, Steps
from vpipe_cli.runs.metrics import steps_of
from worker.spec.files import RunFiles
from worker.spec.records import StepMetrics

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>"


def step(number: int, loss: float | None = None) -> StepMetrics:
    """A step of a quarter of a second, most of it spent in the backward."""
    return StepMetrics(
        step=number,
        time=1000.0 + number / 4,
        samples=32,
        minibatches=4,
        loss=loss,
        lr=0.1,
        forward=0.06,
        backward=0.12,
        update=0.02,
        wait=0.03,
        seconds=0.25,
        memory=100 * 2**20 + number,
    )


def write(files: RunFiles, rank: int, steps: list[StepMetrics]) -> None:
    path = files.metrics(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(each.line() + "\n" for each in steps))


def trained(home: Path, number: int = 1) -> RunFiles:
    """A run of two ranks that did 20 steps and recorded two actions."""
    files = runs.make_run(home, steps=20, number=number)
    for rank in range(2):
        write(files, rank, [step(at, 5 - at / 10 if rank else None) for at in range(1, 21)])
        files.trace(rank).parent.mkdir(parents=True, exist_ok=True)
        spans = [
            {"rank": rank},
            ["forward", "", 10**6, 2 * 10**6, rank, 7, 0],
            ["backward", "", 10**7, 10**8, rank, 7, 0],
        ]
        files.trace(rank).write_text("".join(json.dumps(line) + "\n" for line in spans))
    return files


def report(home: Path, *arguments: str) -> str:
    """What ``vpipe report`` prints."""
    result = CliRunner().invoke(app, ["report", *arguments], env={"VPIPE_HOME": str(home)})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_page_draws_the_run_s_own_numbers(tmp_path: Path) -> None:
    files = trained(tmp_path / "home")
    result = CliRunner().invoke(
        app, ["report", "-o", "json", files.folder.name], env={"VPIPE_HOME": str(tmp_path / "home")}
    )
    assert result.exit_code == 0, result.output
    path = Path(json.loads(result.stdout)["file"])
    assert path.stat().st_size < 3 * 2**20
    shown = browser.opened(path, tmp_path / "profile")
    assert shown.console == []
    assert shown.values("loss") == [{"name": files.folder.name, "points": [[at, 5 - at / 10] for at in range(1, 21)]}]
    assert shown.values("throughput")[0]["points"] == [[at, 128.0] for at in range(2, 21)]
    stages = [json.loads(own["data-values"]) for _, own in shown.elements if own.get("class") == "bar"]
    assert [(stage["rank"], stage["backward"], stage["memory"]) for stage in stages] == [
        (rank, pytest.approx(0.03), 100 * 2**20 + 20) for rank in range(2)
    ]
    assert [own["data-spans"] for _, own in shown.elements if "data-spans" in own] == ["4"]
    assert sum(name == "path" and own.get("class") == "curve" for name, own in shown.elements) == 2


def test_several_runs_are_drawn_together(tmp_path: Path) -> None:
    first, second = (trained(tmp_path / "home", number) for number in (1, 2))
    names = [first.folder.name, second.folder.name]
    file = tmp_path / "both.html"
    result = CliRunner().invoke(
        app, ["report", *names, "--file", str(file)], env={"VPIPE_HOME": str(tmp_path / "home")}
    )
    assert result.exit_code == 0, result.output
    shown = browser.opened(file, tmp_path / "profile", width=390)
    assert shown.console == []
    assert [series["name"] for series in shown.values("loss")] == names


def test_a_run_that_never_began_has_a_page(tmp_path: Path) -> None:
    files = runs.make_run(tmp_path / "home")
    files.job.unlink()
    file = tmp_path / "page.html"
    file.write_text(page([collect(runs.run(files))]))
    shown = browser.opened(file, tmp_path / "profile")
    assert shown.console == [] and files.folder.name in shown.text


def test_nothing_of_a_run_becomes_part_of_the_page(tmp_path: Path) -> None:
    files = trained(tmp_path / "home")
    files.cluster.write_text(HOSTILE)
    file = tmp_path / "page.html"
    file.write_text(page([collect(runs.run(files))]))
    shown = browser.opened(file, tmp_path / "profile")
    assert shown.console == [] and HOSTILE in shown.text
    assert not any(name == "img" for name, _ in shown.elements)


def test_the_page_refers_to_nothing_outside(tmp_path: Path) -> None:
    text = page([collect(runs.run(trained(tmp_path)))])
    assert "default-src 'none'" in text
    assert not any(
        scheme in text.replace("http://www.w3.org/2000/svg", "") for scheme in ("http://", "https://", "//cdn")
    )


def test_a_step_that_was_done_again_counts_once(tmp_path: Path) -> None:
    files = runs.make_run(tmp_path)
    write(files, 0, [step(1, 4.0), step(2, 3.0), step(3, 2.0), step(2, 2.5), step(3, 1.5)])
    assert Steps(steps_of(files.metrics(0))).losses() == [(1, 4.0), (2, 2.5), (3, 1.5)]


def test_a_long_run_is_thinned_out_without_losing_its_mean() -> None:
    points = Steps([step(at, float(at)) for at in range(1, 10_001)]).losses()
    assert len(points) <= POINTS and points[-1][0] == 10_000
    assert sum(loss for _, loss in points) / len(points) == pytest.approx(5000.5)


def test_shares_of_a_rank_add_up_to_its_time() -> None:
    shares = Steps([step(at) for at in range(1, 11)]).shares()
    memory = shares.pop("memory")
    assert sum(part for part in shares.values() if part is not None) == pytest.approx(0.25 / 4)
    assert memory == 100 * 2**20 + 10
