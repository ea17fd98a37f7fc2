"""A launch as a value, the local engine that carries it out, and the commands launch and stop."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from vpipe_cli import machines
from vpipe_cli.commands.launch import launch as launch_command
from vpipe_cli.commands.stop import stop as stop_command
from vpipe_cli.config import split
from vpipe_cli.engines import ENGINES, local
from vpipe_cli.launch import Launch, Surroundings, describe, resolve
from vpipe_cli.runs.state import standing, wait_for_end
from vpipe_cli.runs.store import Run, create, list_runs, new_id
from worker.errors import ConfigError, PreflightError, RunNotFound
from worker.spec.cluster import ClusterSpec
from worker.spec.files import RunFiles
from worker.spec.job import Job, Plan
from worker.spec.records import FINAL

ENGINE = ENGINES["local"]
FOLDER = Path("/runs/tiny-20261123-124900-0000")
USER = {"PATH": "/bin", "LC_ALL": "C", "AWS_SECRET": "x", "VPIPE_RUN": "another"}
HERE = Surroundings("/py", 8, USER, Path("/home/ana"))
CLUSTER = "machines: [cpu*2]\nname: tiny\nrun: {steps: 3}\n"

cli = typer.Typer()
cli.command()(launch_command)
cli.command()(stop_command)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a cluster.yml and a home of its own; no run outlives the test."""
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yml").write_text(CLUSTER)
    yield tmp_path
    for run in list_runs():
        if standing(run).state not in FINAL:
            ENGINE.request_stop(run)
            wait_for_end(run, 20)


def resolved(spec: dict[str, Any] | None = None, here: Surroundings = HERE, folder: Path = FOLDER) -> Launch:
    """The launch of a job of two CPU slots, unless ``spec`` says otherwise."""
    given = ClusterSpec.model_validate({"machines": ["cpu*2"], **(spec or {})})
    return resolve(given, folder.name, RunFiles(folder), machines.slots(given.machines), here)


def started(*programs: str) -> Run:
    """A run of the local engine whose ranks are these programs."""
    run = create(new_id("tiny"), "local")
    given = ClusterSpec(machines=[f"cpu*{len(programs)}"])
    launch = resolve(given, run.id, run.files, machines.slots(given.machines), Surroundings.here())
    ranks = [
        rank.model_copy(update={"argv": [sys.executable, "-S", "-c", program]})
        for rank, program in zip(launch.ranks, programs, strict=True)
    ]
    ENGINE.start(run, launch.model_copy(update={"ranks": ranks}), CLUSTER)
    return run


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_rank_is_wholly_described() -> None:
    folder = str(FOLDER)
    assert resolved().ranks[1].model_dump() == {
        "rank": 1,
        "stage": 1,
        "host": "localhost",
        "device": "cpu",
        "argv": ["/py", "-m", "worker", "--job", f"{folder}/job.json", "--rank", "1", "--attempt", "1"],
        "env": {
            "GLOO_SOCKET_IFNAME": "lo",
            "LC_ALL": "C",
            "MKL_NUM_THREADS": "4",
            "OMP_NUM_THREADS": "4",
            "PATH": "/bin",
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
        },
        "inherit": [],
        "env_prefix": "",
        "cwd": folder,
        "log": f"{folder}/attempt-1/rank-1.log",
        "error": f"{folder}/attempt-1/rank-1.error.json",
        "ready": f"{folder}/attempt-1/rank-1.ready",
        "exit": f"{folder}/attempt-1/rank-1.exit.json",
        "progress": f"{folder}/attempt-1/rank-1.progress",
        "stacks": f"{folder}/attempt-1/rank-1.stacks",
    }


@pytest.mark.parametrize(("cores", "given", "threads"), [(8, "auto", 4), (3, "auto", 1), (1, "auto", 1), (1, 6, 6)])
def test_threads_share_the_cores(cores: int, given: str | int, threads: int) -> None:
    launch = resolved({"run": {"threads": given}}, Surroundings("/py", cores, {}, Path("/")))
    assert [rank.threads for rank in launch.job.ranks] == [threads] * 2


def test_a_gpu_rank_sees_its_own_gpu_only() -> None:
    launch = resolved({"machines": ["localhost:2,5"]})
    assert [rank.device for rank in launch.ranks] == ["cuda:2", "cuda:5"]
    assert [rank.env["CUDA_VISIBLE_DEVICES"] for rank in launch.ranks] == ["2", "5"]
    assert [rank.device for rank in launch.job.ranks] == ["cuda:0", "cuda:0"]


def test_python_path_holds_in_another_folder() -> None:
    here = Surroundings("/py", 1, {"PYTHONPATH": "src:/opt/lib"}, Path("/home/ana"))
    assert resolved(here=here).ranks[0].env["PYTHONPATH"] == "/home/ana/src:/opt/lib"


def test_a_launch_survives_its_file() -> None:
    launch = resolved()
    assert Launch.model_validate_json(launch.model_dump_json()) == launch


def test_describe_shows_places_environment_and_commands() -> None:
    text = describe(resolved({"pipeline": {"partition": [4, 6], "stages": 2, "recompute_ratio": 0.5}}))
    assert "plan    given in cluster.yml" in text
    assert "rank 1 on localhost cpu: stage 1, layers 4-9 (6), recompute_ratio 0.5, threads 4" in text
    assert "  OMP_NUM_THREADS=4\n" in text and "/py -m worker --job " in text and "AWS_SECRET" not in text


def test_start_writes_the_run_and_runs_it() -> None:
    run = started("print('hello')", "pass")
    assert wait_for_end(run, 20).state == "succeeded"
    files = run.files
    assert files.cluster.read_text() == CLUSTER
    assert Job.model_validate_json(files.job.read_text()).plan == Plan.model_validate_json(files.plan.read_text())
    assert Launch.model_validate_json(files.launch.read_text()).run == run.id
    assert files.log(1, 0).read_text().endswith(" o hello\n")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in run.folder.rglob("*") if path.is_file()}
    assert modes == {0o600}


def test_a_run_cannot_be_started_twice() -> None:
    run = started("import time; time.sleep(60)")
    assert local._start_hostd(run.files).endswith("a process of it still holds its lock")
    assert standing(run).state == "starting"


def test_a_hostd_that_cannot_begin_is_an_error_and_a_failed_run() -> None:
    run = create(new_id("tiny"), "local")
    run.files.attempt(1).mkdir()
    with pytest.raises(PreflightError, match="was started before"):
        ENGINE.start(run, resolved(folder=run.folder), CLUSTER)
    assert standing(run).state == "failed"


def test_a_run_stopped_before_its_hostd_began_never_begins() -> None:
    run = create(new_id("tiny"), "local")
    ENGINE.request_stop(run)
    ENGINE.request_stop(run)
    assert standing(run).state == "stopped"
    with pytest.raises(PreflightError, match="a stop was asked for"):
        ENGINE.start(run, resolved(folder=run.folder), CLUSTER)
    assert standing(run).state == "stopped"


@pytest.mark.parametrize(
    ("given", "path", "overrides"),
    [
        ([], "cluster.yml", []),
        (["a.yml"], "a.yml", []),
        (["a.yml", "lr=1"], "a.yml", ["lr=1"]),
        (["lr=1", "steps=2"], "cluster.yml", ["lr=1", "steps=2"]),
        (["a=b.yml", "lr=1"], "a=b.yml", ["lr=1"]),
    ],
)
def test_file_and_overrides(here: Path, given: list[str], path: str, overrides: list[str]) -> None:
    (here / "a=b.yml").touch()
    assert split(given) == (Path(path), overrides)


def test_dry_run_prints_and_touches_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_NAME", "\x1b[2Jx")
    result = invoke("launch", "--dry-run", "steps=7", "-o", "json")
    assert Launch.model_validate_json(result.stdout).job.spec.run.steps == 7
    assert json.loads(result.stdout)["ranks"][0]["env"]["LC_NAME"] == "\x1b[2Jx"
    text = invoke("launch", "--dry-run").stdout
    assert "stage 1, layers" in text and "\x1b" not in text
    assert os.listdir(here) == ["cluster.yml"]


def test_mistakes_start_nothing(here: Path) -> None:
    with pytest.raises(ConfigError, match="lr"):
        invoke("launch", "-d", "optimizer.lr=fast")
    assert os.listdir(here) == ["cluster.yml"]


def test_detached_launch_and_stop_as_documents() -> None:
    document = json.loads(invoke("launch", "--detach", "-o", "json").stdout)
    assert (document["schema"], document["state"], len(document["ranks"])) == (1, "starting", 2)
    assert Path(document["folder"]).name == document["run"]
    stopped = json.loads(invoke("stop", "-o", "json").stdout)
    assert stopped == {
        "schema": 1, "run": document["run"], "folder": document["folder"], "state": "stopped", "already": False,
    }  # fmt: skip


def test_stop_says_what_happened() -> None:
    run = started("import time; time.sleep(60)")
    assert invoke("stop").stdout == f"run {run.id} stopped\n"
    again = invoke("stop", "tiny")
    assert (again.exit_code, again.stdout) == (0, f"run {run.id} had ended before: stopped\n")


def test_stop_of_no_run() -> None:
    with pytest.raises(RunNotFound):
        invoke("stop", "nobody")


def test_ctrl_c_while_starting_leaves_nothing_that_begins_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = create(new_id("tiny"), "local")
    monkeypatch.setattr(local.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ENGINE.start(run, resolved(folder=run.folder), CLUSTER)
    assert standing(run).state == "stopped"
