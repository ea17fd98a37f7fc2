"""A sweep on Slurm is one array: its throttle, its tasks' own fates, and a controller that is killed and comes back."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig import wait_for
from tests.slurm import gang
from tests.slurm.cluster import Slurm
from tests.slurm.fixtures import _slurm, slurm
from vpipe_cli.launch import Launch
from vpipe_cli.runs import store as runs
from vpipe_cli.runs.store import Run
from vpipe_cli.slurm.script import array_script
from vpipe_cli.sweep import arrays, begin, control, controller, runner, store
from vpipe_cli.sweep.begin import Asked
from vpipe_cli.sweep.controller import Controller
from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.grammar import axes
from vpipe_cli.sweep.records import Definition, Trial
from vpipe_cli.sweep.trials import Grid
from worker.errors import PreflightError

__all__ = ["_slurm", "slurm"]

CLUSTER = f"""\
name: tiny
engine: slurm
slurm: {{nodes: 1}}
python: {sys.executable}
model: {{hidden_size: 32, num_layers: 2, num_heads: 2}}
data: {{source: python-stdlib, sequence_length: 32, minibatch_size: 4, vocab_size: 500}}
run: {{steps: 5, threads: 1}}
"""
WAITS = gang.READY + "while not os.path.exists(os.environ['GO']): time.sleep(0.05)"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a cluster.yml and a home of its own."""
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yml").write_text(CLUSTER)
    return tmp_path


@pytest.fixture
def program(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the program that the rank of each trial is; it may wait for the file ``go``."""
    real = runner.resolved

    def use(text: str) -> None:
        def resolved(
            definition: Definition, files: SweepFiles, trial: Trial, lane: int = 0, check: bool = True
        ) -> Launch:
            launch = real(definition, files, trial, lane, check)
            given = {"argv": [sys.executable, "-S", "-c", text]}
            ranks = [
                rank.model_copy(update={**given, "env": {"HERE": rank.cwd, "GO": str(here / "go")}})
                for rank in launch.ranks
            ]
            return launch.model_copy(update={"ranks": ranks})

        monkeypatch.setattr(runner, "resolved", resolved)

    return use


def defined(*typed: str, parallel: int = 2) -> tuple[SweepFiles, Definition]:
    """A sweep as typed, in its folder."""
    asked = Asked(begin.base_of(None, None), Grid(axes(typed), parallel=parallel))
    definition, _ = begin.define(asked)
    return store.write(definition, Path("cluster.yml").read_text()), definition


def states(files: SweepFiles, definition: Definition) -> list[str]:
    """Of each trial in the order of running."""
    rows = store.said(files).rows
    return [rows[identity].state if identity in rows else "waiting" for identity in definition.order]


def in_order(files: SweepFiles, definition: Definition) -> list[Run]:
    """The run of each trial, in that order."""
    given = store.said(files).runs
    return [runs.find(given[identity]) for identity in definition.order]


def queued(slurm: Slurm) -> dict[str, str]:
    """The state of each task that Slurm still has to do with."""
    lines = slurm.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
    return {name.partition("_")[2]: state for name, state in map(str.split, lines)}


def test_the_trials_are_tasks_of_one_array_so_many_at_a_time(
    slurm: Slurm, program: Callable[[str], None], here: Path
) -> None:
    program(WAITS)
    files, definition = defined("lr=1e-3,2e-3,3e-3", parallel=2)
    first = Controller(files, definition)
    first._start_more()
    wait_for(lambda: queued(slurm) == {"0": "RUNNING", "1": "RUNNING", "2": "PENDING"}, 60)
    tasks = [gang.job(run) for run in in_order(files, definition)]
    assert [task.partition("_")[2] for task in tasks] == ["0", "1", "2"] and len({t.split("_")[0] for t in tasks}) == 1
    (here / "go").touch()
    assert first.run() == "done"
    assert states(files, definition) == ["succeeded"] * 3
    for run in in_order(files, definition):
        assert "rank 0 on n" in run.files.log(1, 0).read_text() and run.files.slurm_log.exists()
    assert controller.main(files.folder) == 0 and len(runs.list_runs()) == 3, "typed again, it runs nothing"


@pytest.mark.parametrize(("where", "arrays_made"), [("_sbatch", 2), ("_number_in", 1)])
def test_a_controller_killed_before_or_while_sbatch_answers(
    slurm: Slurm, program: Callable[[str], None], here: Path, where: str, arrays_made: int
) -> None:
    """Killed before, nothing was queued, and the trials begin anew; killed after, the array is taken over."""
    program(WAITS)
    files, definition = defined("lr=1e-3,2e-3")
    if (child := os.fork()) == 0:
        setattr(arrays, where, lambda _: os.kill(os.getpid(), signal.SIGKILL))
        Controller(files, definition)._start_more()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (here / "go").touch()
    assert Controller(files, definition).run() == "done"
    assert states(files, definition) == ["succeeded"] * 2
    assert len(list(arrays._folders(files))) == arrays_made and len(runs.list_runs()) == 2 * arrays_made


def test_stop_cancels_the_array_and_the_rest_is_run_when_it_is_typed_again(
    slurm: Slurm, program: Callable[[str], None], here: Path
) -> None:
    program(WAITS)
    files, definition = defined("lr=1e-3,2e-3,3e-3", parallel=1)
    first = Controller(files, definition)
    first._start_more()
    gang.running(in_order(files, definition)[0])
    control.request_stop(files)
    assert first.run() == "stopped"
    assert states(files, definition) == ["stopped"] * 3
    assert not in_order(files, definition)[1].files.attempt(1).exists()
    wait_for(lambda: not queued(slurm), 60)
    (here / "go").touch()
    files, definition = defined("lr=1e-3,2e-3,3e-3", parallel=3)
    assert Controller(files, definition).run() == "done"
    assert states(files, definition) == ["succeeded"] * 3


def test_stop_after_lets_the_running_task_finish(slurm: Slurm, program: Callable[[str], None], here: Path) -> None:
    program(WAITS)
    files, definition = defined("lr=1e-3,2e-3", parallel=1)
    first = Controller(files, definition)
    first._start_more()
    gang.running(in_order(files, definition)[0])
    control.request_stop(files, after=True)
    first._leave()
    wait_for(lambda: queued(slurm) == {"0": "RUNNING"}, 60)
    (here / "go").touch()
    assert first.run() == "stopped"
    assert states(files, definition) == ["succeeded", "stopped"]


def test_a_task_that_is_queued_again_leaves_the_others_alone(
    slurm: Slurm, program: Callable[[str], None], here: Path
) -> None:
    """The last task of an array, for it bears the number of the whole array."""
    program(gang.LEAVES.replace("'/preempt'): ", "'/preempt') and not os.path.exists(os.environ['GO']): "))
    files, definition = defined("lr=1e-3,2e-3")
    first = Controller(files, definition)
    first._start_more()
    other, last = map(gang.running, in_order(files, definition))
    slurm.run("scancel", "--signal=USR1", "--batch", gang.job(last))
    assert gang.end(last).attempt == 2
    wait_for(lambda: queued(slurm) == {"0": "RUNNING"}, 60)
    gang.ENGINE.request_stop(other)
    assert first.run() == "done"
    assert states(files, definition) == ["stopped", "succeeded"]
    assert gang.states(last).count("pending") == 2 and gang.states(other).count("pending") == 1


def test_an_array_that_slurm_refuses(slurm: Slurm, here: Path) -> None:
    (here / "cluster.yml").write_text(CLUSTER.replace("nodes: 1", "nodes: 1, partition: nowhere"))
    files, definition = defined("lr=1e-3,2e-3")
    with pytest.raises(PreflightError, match="invalid partition specified: nowhere"):
        runner.resolved(definition, files, definition.trials[0])
    launches = [(trial, runner.resolved(definition, files, trial, check=False)) for trial in definition.trials]
    with pytest.raises(PreflightError, match=r"^Slurm refuses the sweep: invalid partition specified: nowhere\n"):
        arrays.submit(files, definition, launches)
    assert [run.files.attempt(1).exists() for run in runs.list_runs()] == [False, False]
    assert all(runner.again(run.id) is None for run in runs.list_runs())


def test_the_script_of_an_array(here: Path) -> None:
    _, definition = defined("lr=1e-3,2e-3,3e-3")
    launch = runner.resolved(definition, store.write(definition, CLUSTER), definition.trials[0], check=False)
    script = array_script(launch, "/shared/my home/sweeps/s/array-1", 3, 2).splitlines()
    assert script[:3] == ["#!/bin/bash", "#SBATCH --array=0-2%2", "#SBATCH --job-name=tiny"]
    assert '#SBATCH --output="/shared/my home/sweeps/s/array-1/%a/slurm.log"' in script
    assert script[-1] == "exec bash '/shared/my home/sweeps/s/array-1'/\"$SLURM_ARRAY_TASK_ID\"/slurm.sh"


@pytest.mark.parametrize(
    ("typed", "is_array"),
    [
        (("lr=1e-3,2e-3",), True),
        (("slurm.qos=low,high",), False),
        (("lr=1e-3,2e-3", "slurm.login=h1"), False),
        (("lr=1e-3,2e-3", "slurm.nodes=1,2"), False),
        (("engine=slurm,local", "machines=[cpu]"), False),
        (("lr=1e-3,2e-3", "engine=local", "machines=[cpu*2]"), False),
    ],
)
def test_what_can_be_one_array(typed: tuple[str, ...], is_array: bool) -> None:
    assert defined(*typed, parallel=1)[1].array == is_array
