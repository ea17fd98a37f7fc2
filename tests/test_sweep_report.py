"""`vpipe report SWEEP`: one page of a sweep as a whole, which shows the trials' own numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import browser, runs
from tests.test_report import HOSTILE, trained
from tests.test_sweep_results import MIB, ROWS, SWEEP
from vpipe_cli.app import app
from vpipe_cli.sweep import store
from vpipe_cli.sweep.files import SweepFiles
from worker.errors import UsageError
from worker.spec.files import append_event


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a sweep of four trials, one of them with a run; its cluster.yml is hostile."""
    made = tmp_path / "home"
    monkeypatch.setenv("VPIPE_HOME", str(made))
    run = trained(made).folder.name
    files = store.write(SWEEP, HOSTILE)
    for row in ROWS.values():
        row = row.model_copy(update={"run": run}) if row.number == 2 else row
        append_event(files.events, {"time": runs.BEGIN, "event": "end", "row": row.model_dump(mode="json")})
    append_event(files.events, {"time": runs.BEGIN, "event": "over", "why": "done"})
    return made


def report(*arguments: str) -> Path:
    result = CliRunner().invoke(app, ["report", *arguments, "-o", "json"])
    assert result.exit_code == 0, result.output
    return Path(json.loads(result.stdout)["file"])


def test_the_page_shows_every_trial_and_draws_their_numbers(home: Path, tmp_path: Path) -> None:
    path = report(SWEEP.sweep)
    assert path == SweepFiles(store.folder_of(SWEEP.sweep)).folder / "report.html"
    shown = browser.opened(path, tmp_path / "profile")
    assert shown.console == []
    points = [(point["x"], point["y"], point["front"], point["chosen"]) for point in shown.values("trade-off")]
    assert points == [(600, 100, True, True), (500, 90, True, False), (550, 80, False, False)]
    assert shown.values("peak memory") == [{"name": "[5, 5]", "points": [[0, 600], [0.5, 500], [1, 550]]}]
    assert shown.values("step time")[0]["points"][0] == [0, 80]
    assert shown.values("loss")[0]["points"] == [[at, 5 - at / 10] for at in range(1, 21)]
    assert "the planner's choice, recompute_ratio=0 partition=[5, 5]: 100 samples/s, the best found" in shown.text
    assert "OutOfMemoryError: no" in shown.text and HOSTILE in shown.text


def test_a_trial_is_linked_to_its_numbers(home: Path, tmp_path: Path) -> None:
    shown = browser.opened(report(SWEEP.sweep[:9]), tmp_path / "profile", width=390)
    assert shown.console == []
    links = [own["href"] for name, own in shown.elements if name == "a"]
    targets = [f"#{own['id']}" for name, own in shown.elements if name == "section" and "id" in own]
    assert links == targets == ["#trial-2", "#trial-4"]
    bars = [json.loads(own["data-values"]) for _, own in shown.elements if own.get("class") == "bar"]
    assert [(bar["rank"], bar["memory"]) for bar in bars] == [(rank, 100 * MIB + 20) for rank in range(2)]


def test_the_page_refers_to_nothing_outside(home: Path) -> None:
    text = report(SWEEP.sweep).read_text().replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in text and not any(scheme in text for scheme in ("http://", "https://", "//cdn"))


def test_a_sweep_stands_alone(home: Path) -> None:
    result = CliRunner().invoke(app, ["report", SWEEP.sweep, "bert"])
    assert isinstance(result.exception, UsageError) and "is a sweep" in result.exception.message
