"""Checkpoints of hosts with disks of their own: brought together here, and sent to where a new run begins."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.saved import Run, job_of, newest, spec
from tests.test_checkpoint import MODEL, apart, flip
from vpipe_cli import checkpoints
from vpipe_cli.engines import saved
from vpipe_cli.runs import store
from vpipe_cli.transport.local import LocalTransport
from worker.checkpoint import layout, manifest, verify
from worker.errors import CheckpointError
from worker.spec.files import RunFiles

HOSTS = {"a": LocalTransport(), "b": LocalTransport()}


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two hosts have of a run of three ranks, two of them on the first."""
    whole = spec(run={"steps": 8}, checkpoint={"copies": 0})
    run = Run(tmp_path_factory.mktemp("run") / "run", job_of(whole, [1, 1, 1]), MODEL).train(apart)
    for number, host in enumerate(HOSTS):
        (run.files.folder / host).mkdir()
        (run.files.folder / f"disk-{number}").rename(run.files.folder / host / "checkpoints")
    return run.files.folder


def folders(disks: Path) -> dict[str, str]:
    return {host: str(disks / host) for host in HOSTS}


def test_the_parts_of_all_hosts_make_a_whole(disks: Path, tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "here")
    assert verify.problems(disks / "a" / "checkpoints" / "step-8")
    assert saved.fetch(files, HOSTS, folders(disks), None) == 8
    assert saved.fetch(files, HOSTS, folders(disks), 4) == 4
    assert [verify.problems(layout.committed(files.checkpoints, step)) for step in (8, 4)] == [[], []]
    assert sorted(os.listdir(files.checkpoints)) == ["step-4", "step-8"]


def test_what_is_damaged_or_missing_elsewhere_is_named(disks: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(disks, tmp_path / "copy"))
    flip(copy / "b" / "checkpoints" / "step-8" / "layer-0002-head.safetensors")
    shutil.rmtree(copy / "b" / "checkpoints" / "step-4")
    files = RunFiles(tmp_path / "here")
    with pytest.raises(CheckpointError, match=r"the hosts have of step-8 is damaged: .*layer-0002-head.* was changed"):
        saved.fetch(files, HOSTS, folders(copy), None)
    with pytest.raises(
        CheckpointError, match=re.escape("no checkpoint of step 4 on all of its hosts: a has [4, 8]; b has [8]")
    ):
        saved.fetch(files, HOSTS, folders(copy), 4)
    assert os.listdir(files.checkpoints) == []


def test_only_the_user_may_read_them_whatever_the_umask(disks: Path, tmp_path: Path) -> None:
    files, new = RunFiles(tmp_path / "runs" / "here"), RunFiles(tmp_path / "runs" / "new")
    before = os.umask(0)
    try:
        for folder in (tmp_path / "runs", new.folder):
            folder.mkdir(mode=0o700)
        saved.fetch(files, HOSTS, folders(disks), 4)
        path = layout.committed(files.checkpoints, 4)
        found = store.Run("here", files.folder, 0.0, "", "ssh")
        checkpoints.give(checkpoints.Checkpoint(found, 4, path, manifest.read(path)), new)
    finally:
        os.umask(before)
    assert [path for path in (tmp_path / "runs").rglob("*") if path.stat().st_mode & 0o077] == []


def each_on_its_own(rank: int) -> None:
    RunFiles.checkpoints = property(lambda self: self.folder / f"disk-{rank}" / "checkpoints")  # type: ignore[method-assign,assignment]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three hosts have of a run with a rank on each: every part twice."""
    run = Run(tmp_path_factory.mktemp("run") / "run", job_of(spec(run={"steps": 4}), [1, 1, 1]), MODEL)
    for number in range(3):
        (run.files.folder / f"disk-{number}").mkdir()
    return run.train(each_on_its_own).files.folder


@pytest.mark.parametrize("lost", range(3))
def test_any_one_host_may_be_lost_and_nothing_with_it(lost: int, three: Path, tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "here")
    left = {f"h{number}": str(three / f"disk-{number}") for number in range(3) if number != lost}
    assert saved.fetch(files, dict.fromkeys(left, LocalTransport()), left, None) == 4
    assert verify.problems(layout.committed(files.checkpoints, 4)) == []


def test_with_a_second_host_its_part_is_lost_and_named(three: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rank-[12]\.safetensors has 0 bytes instead of \d+"):
        saved.fetch(RunFiles(tmp_path / "here"), {"h0": LocalTransport()}, {"h0": str(three / "disk-0")}, None)


def test_a_copy_that_was_damaged_is_passed_over_for_another(three: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(three, tmp_path / "copy"))
    flip(copy / "disk-1" / "checkpoints" / "step-4" / "layer-0001-block.0.safetensors")
    hosts = {f"h{number}": str(copy / f"disk-{number}") for number in range(3)}
    assert saved.fetch(RunFiles(tmp_path / "here"), dict.fromkeys(hosts, LocalTransport()), hosts, None) == 4


def test_a_new_run_begins_with_them_on_every_host(disks: Path, tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "here")
    saved.fetch(files, HOSTS, folders(disks), 4)
    there = {host: str(tmp_path / host) for host in HOSTS}
    saved.send(files, HOSTS, there)
    assert [newest(tmp_path / host / "checkpoints") for host in HOSTS] == [(4, []), (4, [])]
