"""The controller of a sweep with a real hostd below it, whose ranks are small programs; and what its folder says."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rig import wait_for
from vpipe_cli.engines import ENGINES
from vpipe_cli.launch import Launch
from vpipe_cli.runs import store as runs
from vpipe_cli.runs.state import standing, wait_for_end
from vpipe_cli.sweep import begin, control, controller, runner, store
from vpipe_cli.sweep.begin import Asked
from vpipe_cli.sweep.controller import Controller
from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.grammar import axes
from vpipe_cli.sweep.records import Definition, Row, Trial
from vpipe_cli.sweep.trials import Grid
from worker.errors import RunNotFound, UsageError
from worker.spec.files import read_events
from worker.spec.records import FINAL

CLUSTER = """\
name: tiny
machines: [cpu*1]
model: {hidden_size: 32, num_layers: 2, num_heads: 2}
data: {source: python-stdlib, sequence_length: 32, minibatch_size: 4, vocab_size: 500}
run: {steps: 5, threads: 1}
"""
GOOD = "pass"
BAD = "import sys; sys.exit(3)"
LONG = "import time; time.sleep(60)"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a cluster.yml and a home of its own; no run outlives the test."""
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yml").write_text(CLUSTER)
    yield tmp_path
    for run in runs.list_runs():
        if standing(run).state not in FINAL:
            ENGINES[run.engine].request_stop(run)
            wait_for_end(run, 20)


def defined(*typed: str, fail_fast: bool = False, parallel: int = 1) -> tuple[SweepFiles, Definition]:
    """A sweep as typed, in its folder."""
    asked = Asked(begin.base_of(None, None), Grid(axes(typed), parallel=parallel), fail_fast=fail_fast)
    definition, _ = begin.define(asked)
    return store.write(definition, Path("cluster.yml").read_text()), definition


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the program that the rank of each trial is; it may depend on the trial's ``number``."""
    real = runner.resolved

    def use(program: str | Callable[[int], str]) -> None:
        def resolved(
            definition: Definition, files: SweepFiles, trial: Trial, lane: int = 0, check: bool = True
        ) -> Launch:
            launch = real(definition, files, trial, lane, check)
            text = program if isinstance(program, str) else program(trial.number)
            argv = [sys.executable, "-S", "-c", text]
            ranks = [rank.model_copy(update={"argv": argv}) for rank in launch.ranks]
            return launch.model_copy(update={"ranks": ranks})

        monkeypatch.setattr(runner, "resolved", resolved)

    return use


def started(files: SweepFiles) -> list[str]:
    return [event["trial"] for event in read_events(files.events) if event["event"] == "start"]


def states(files: SweepFiles, definition: Definition) -> list[str]:
    rows = store.said(files).rows
    return [rows[t.identity].state if t.identity in rows else "waiting" for t in definition.trials]


def test_every_trial_runs_once_in_the_order_of_the_seed(programs: Callable[[str], None]) -> None:
    programs(GOOD)
    files, definition = defined("lr=1e-3,2e-3,3e-3")
    assert controller.main(files.folder) == 0
    assert states(files, definition) == ["succeeded"] * 3
    assert started(files) == definition.order and store.said(files).over == "done"
    assert controller.main(files.folder) == 0
    assert started(files) == definition.order, "typed again, it runs nothing"
    rows = [json.loads(line) for line in files.results("jsonl").read_text().splitlines()]
    assert [row["command"] for row in rows] == [f"vpipe launch cluster.yml lr={n}e-3" for n in (1, 2, 3)]
    assert len(files.results("csv").read_text().splitlines()) == 4


def test_a_failed_trial_stops_the_others_only_if_asked(programs: Callable[..., None]) -> None:
    programs(BAD)
    files, definition = defined("lr=1e-3,2e-3")
    controller.main(files.folder)
    assert states(files, definition) == ["failed"] * 2 and store.said(files).over == "done"
    files, definition = defined("lr=3e-3,4e-3", fail_fast=True)
    controller.main(files.folder)
    assert sorted(states(files, definition)) == ["failed", "waiting"]
    assert store.said(files).over.startswith("failed: trial ")


def test_a_failed_trial_runs_again_and_a_settled_one_does_not(programs: Callable[..., None]) -> None:
    files, definition = defined("lr=1e-3,2e-3")
    programs(lambda number: BAD if number == 1 else GOOD)
    controller.main(files.folder)
    programs(GOOD)
    controller.main(files.folder)
    assert states(files, definition) == ["succeeded"] * 2
    assert sorted(map(started(files).count, {t.identity for t in definition.trials})) == [1, 2]


def test_stop_ends_the_running_trial_and_leaves_the_rest(programs: Callable[[str], None]) -> None:
    programs(LONG)
    files, definition = defined("lr=1e-3,2e-3")
    with_controller = Controller(files, definition)
    with_controller._start_more()
    control.request_stop(files)
    assert with_controller.run() == "stopped"
    assert sorted(states(files, definition)) == ["stopped", "waiting"]


def test_stop_after_lets_the_running_trial_finish(programs: Callable[[str], None]) -> None:
    programs("import time; time.sleep(0.5)")
    files, definition = defined("lr=1e-3,2e-3")
    with_controller = Controller(files, definition)
    with_controller._start_more()
    control.request_stop(files, after=True)
    assert with_controller.run() == "stopped"
    assert sorted(states(files, definition)) == ["succeeded", "waiting"]


def test_a_new_controller_takes_over_what_runs(programs: Callable[[str], None], here: Path) -> None:
    programs(f"import os, time\nwhile not os.path.exists({str(here / 'go')!r}): time.sleep(0.05)")
    files, definition = defined("lr=1e-3,2e-3")
    Controller(files, definition)._start_more()  # and this one is killed: it says nothing more
    (here / "go").touch()
    assert Controller(files, definition).run() == "done"
    assert started(files) == definition.order and len(runs.list_runs()) == 2


def test_a_run_that_was_announced_and_never_made_is_made(programs: Callable[[str], None]) -> None:
    programs(GOOD)
    files, definition = defined("lr=1e-3")
    Controller(files, definition)._tell("start", trial=definition.order[0], run="tiny-20260101-000000-0000", lane=0)
    assert Controller(files, definition).run() == "done"
    assert states(files, definition) == ["succeeded"]


def test_a_run_of_a_former_grid_is_awaited(programs: Callable[[str], None], here: Path) -> None:
    programs(f"import os, time\nwhile not os.path.exists({str(here / 'go')!r}): time.sleep(0.05)")
    files, definition = defined("lr=1e-3")
    Controller(files, definition)._start_more()
    Path("cluster.yml").write_text(CLUSTER.replace("steps: 5", "steps: 6"))
    files, changed = defined("lr=1e-3")
    assert changed.sweep == definition.sweep and changed.order != definition.order
    second = Controller(files, changed)
    second._adopt()
    second._start_more()
    assert len(runs.list_runs()) == 1
    (here / "go").touch()
    assert second.run() == "done" and len(runs.list_runs()) == 2


def test_parallel_trials_run_at_the_same_time(programs: Callable[[str], None]) -> None:
    programs(LONG)
    Path("cluster.yml").write_text(CLUSTER.replace("cpu*1", "cpu*2"))
    files, definition = defined("lr=1e-3,2e-3,3e-3", parallel=2)
    with_controller = Controller(files, definition)
    with_controller._start_more()
    assert len(runs.list_runs()) == 2
    control.request_stop(files)
    assert with_controller.run() == "stopped"


def test_only_one_controller_runs_a_sweep(programs: Callable[[str], None]) -> None:
    files, _ = defined("lr=1e-3")
    control.start(files)  # with real ranks, which are not awaited here
    assert store.is_alive(files) and controller.main(files.folder) == controller.TAKEN
    control.request_stop(files)
    control.wait_for_end(files)
    assert store.said(files).over == "stopped"


def test_another_sweep_lends_its_results(programs: Callable[[str], None]) -> None:
    programs(GOOD)
    files, _ = defined("lr=1e-3,2e-3")
    controller.main(files.folder)
    wider, definition = defined("lr=1e-3,2e-3,3e-3")
    assert begin.take_over(wider, definition) == 2
    assert begin.take_over(wider, definition) == 0
    controller.main(wider.folder)
    assert states(wider, definition) == ["succeeded"] * 3 and len(started(wider)) == 1


def test_a_changed_cluster_file_says_which_trials_are_new(here: Path) -> None:
    files, definition = defined("lr=1e-3,2e-3")
    assert begin.news(files, definition, CLUSTER) == ["0 of 2 trials have their results; 2 to run"]
    changed = CLUSTER.replace("steps: 5", "steps: 6")
    Path("cluster.yml").write_text(changed)
    asked = Asked(begin.base_of(None, None), Grid(axes(["lr=1e-3,2e-3"])))
    told = begin.news(files, begin.define(asked)[0], changed)
    assert told[0] == "cluster.yml has changed since this sweep was typed; new: all trials"


def test_the_file_of_the_newest_run_stands_in(programs: Callable[[str], None], here: Path) -> None:
    programs(GOOD)
    files, _ = defined("lr=1e-3")
    controller.main(files.folder)
    Path("cluster.yml").unlink()
    base = begin.base_of(None, 7)
    assert base.overrides == ["lr=1e-3", "run.steps=7"] and base.folder == here
    (here / "home" / "runs").rename(here / "gone")
    with pytest.raises(UsageError, match=r"no cluster\.yml in this folder"):
        begin.base_of(None, None)


def test_a_full_disk_is_told(programs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    programs(GOOD)
    files, _ = defined("lr=1e-3")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runner, "start", full)
    controller.main(files.folder)
    assert store.said(files).over == "failed: [Errno 28] No space left on device"


def test_sweeps_are_found() -> None:
    with pytest.raises(RunNotFound, match="no sweep yet"):
        store.find()
    _, definition = defined("lr=1e-3")
    for asked in (None, "tiny", definition.sweep, definition.sweep[:8]):
        assert store.find(asked) == definition
    with pytest.raises(RunNotFound, match="near it: tiny-"):
        store.find("tidy")


def test_a_row_survives_its_event(programs: Callable[[str], None]) -> None:
    row = Row(number=1, identity="a", state="oom", memory_bytes=[1, 3, 2], idle=[0.0, 1.0], stage=2)
    assert Row.model_validate(row.model_dump(mode="json", exclude_defaults=True)) == row
    assert (row.peak, row.idle_share, row.is_settled) == (3, 0.5, True)


def test_the_controller_is_deaf_to_the_terminal(here: Path) -> None:
    files, _ = defined("lr=1e-3")
    control.start(files)
    begun = wait_for(lambda: next((event for event in read_events(files.events) if event["event"] == "begin"), None))
    assert os.getsid(begun["pid"]) != os.getsid(0)
    control.request_stop(files)
    wait_for(lambda: not store.is_alive(files))
