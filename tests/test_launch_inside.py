"""A job in a container on this machine: the local engine starts its ranks inside a real image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import canary
from vpipe_cli import config, machines
from vpipe_cli.container.store import Image
from vpipe_cli.engines import ENGINES
from vpipe_cli.launch import Launch, Surroundings, resolve
from vpipe_cli.runs.execute import execute
from vpipe_cli.runs.places import places
from vpipe_cli.runs.state import standing, wait_for_end
from vpipe_cli.runs.store import Run, create, list_runs, new_id
from vpipe_cli.shipped import inside_here
from worker.errors import ImageError, PreflightError
from worker.spec.cluster import ClusterSpec
from worker.spec.records import FINAL

ENGINE = ENGINES["local"]
PROGRAM = """
import os, pathlib, sys
print(os.getcwd(), *sorted(os.listdir("/vpipe/user-code")), sys.argv[1:])
print(open("/data/words").read(), os.path.exists({outside!r}), "MY_TOKEN" in os.environ, os.environ["VPIPE_RANK"])
pathlib.Path("/vpipe/cache/made").touch()
pathlib.Path("/tmp/made").touch()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own, with data and code, and a secret in the environment; no run outlives the test."""
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MY_TOKEN", canary.SECRET)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "words").write_text("some words")
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__main__.py").touch()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text("def build(): ...")
    yield tmp_path
    for run in list_runs():
        if standing(run).state not in FINAL:
            ENGINE.request_stop(run)
            wait_for_end(run, 60)


def spec_of(folder: Path, image: Path | str, **more: Any) -> ClusterSpec:
    return ClusterSpec.model_validate(
        {
            "machines": ["cpu*2"],
            "pipeline": {"stages": 2},
            "container": {"image": str(image), "binds": [f"{folder}/data:/data"]},
            **more,
        }
    )


def launched(spec: ClusterSpec, run: Run) -> Launch:
    """Its worker is a program of one file: the small image lacks what the real one imports."""
    inside = inside_here(spec, build=True)
    assert inside and Path(inside.worker, "train.py").exists()
    own = {name: str(run.folder.parents[2] / name) for name in ("worker", "code")}
    inside = replace(inside, worker=own["worker"], user_code=own["code"])
    here = replace(Surroundings.here(), inside=inside)
    return resolve(spec, run.id, run.files, machines.slots(spec.machines), here)


def started(spec: ClusterSpec) -> Run:
    run = create(new_id("inside"), "local")
    launch = launched(spec, run)
    ENGINE.check(launch)
    ENGINE.start(run, launch, "")
    return run


def test_ranks_see_what_they_need_and_nothing_else(here: Path, small_image: Image) -> None:
    program = PROGRAM.format(outside=str(here / "data"))
    (here / "worker" / "__main__.py").write_text(program)
    run = started(spec_of(here, small_image.path))
    ended = wait_for_end(run, 120)
    logs = [run.files.log(1, rank).read_text() for rank in (0, 1)]
    assert ended.state == "succeeded", logs
    said = [[line.split(" ", 2)[2] for line in log.splitlines()] for log in logs]
    for rank in (0, 1):
        given = ["--job", "/vpipe/run/job.json", "--rank", str(rank), "--attempt", "1"]
        assert said[rank] == [f"/vpipe/run mine.py {given}", f"some words False False {rank}"]
    assert (here / "cache" / "made").exists() and (run.folder / "tmp" / "rank-1" / "made").exists()
    assert canary.leaks(here / "home", *logs) == []


def test_exec_goes_inside_too(here: Path, small_image: Image, capfd: pytest.CaptureFixture[str]) -> None:
    run = started(spec_of(here, small_image.path))
    assert wait_for_end(run, 120).state == "succeeded"
    assert execute(run, places(run)[1], ["sh", "-c", "pwd; cat /data/words; exit 5"]) == 5
    assert capfd.readouterr().out == "/vpipe/run\nsome words"


def test_an_image_that_is_none_is_refused(here: Path) -> None:
    (here / "not.sif").write_text("#!/bin/sh\n")
    with pytest.raises(ImageError, match="is no SIF image"):
        inside_here(spec_of(here, here / "not.sif"), build=True)


def test_without_apptainer_it_is_named(here: Path, small_image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = launched(spec_of(here, small_image.path), create(new_id("inside"), "local"))
    (here / "bin").mkdir()
    for program in ("sh", "python3"):
        (here / "bin" / program).symlink_to(f"/usr/bin/{program}")
    monkeypatch.setenv("PATH", str(here / "bin"))
    with pytest.raises(PreflightError, match="localhost: apptainer: neither apptainer nor") as caught:
        ENGINE.check(launch)
    assert "leave `container` out" in caught.value.hint


def test_a_container_here_needs_no_other_engine(here: Path, small_image: Image) -> None:
    (here / "cluster.yml").write_text(f"machines: [cpu*2]\ncontainer: {{image: {small_image.path}}}\n")
    assert config.load(here / "cluster.yml").engine == "local"
    (here / "x.def").write_text("Bootstrap: docker\nFrom: x\n")
    inside = inside_here(spec_of(here, here / "x.def"), build=False)  # a dry run builds nothing
    assert inside and inside.image == "not-built-yet" and not os.path.exists(here / "home")
