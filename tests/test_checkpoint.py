"""Files may be altered in any way, and ranks fail to write theirs: a good checkpoint stays, a bad one is named."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import toy
from tests.ranks import Failure
from tests.saved import Alone, Run, job_of, kill_at, newest, spec
from worker.checkpoint import layout, manifest, verify
from worker.errors import CheckpointError, PeerLost
from worker.recovery import tensors
from worker.recovery.commit import Commit
from worker.recovery.snapshot import Camera, Snapshot
from worker.spec.files import RunFiles

MODEL = toy.model(1)
SPEC = spec(name="sgd", momentum=0.9, run={"steps": 3}, checkpoint={"every_steps": 1})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two stages, saved after each of its three steps. Not to be written to."""
    return Run(tmp_path_factory.mktemp("origin") / "run", job_of(SPEC, [1, 2]), MODEL).train()


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """A copy of its checkpoints."""
    return Path(shutil.copytree(run.folder, tmp_path / "checkpoints"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def punch(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


def swap(path: Path) -> None:
    other = path.with_name(path.name.replace("0000-embed", "0001-block.0"))
    path.rename(path.with_name("x"))
    other.rename(path)
    path.with_name("x").rename(other)


def as_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def edited(path: Path) -> None:
    text = path.with_name("manifest.json")
    text.write_text(text.read_text().replace('"step":3', '"step":2'))


def reformatted(path: Path) -> None:
    text = path.with_name("manifest.json")
    text.write_text(json.dumps(json.loads(text.read_text()), indent=1))


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


class Bomb:
    """Leaves a file if anything unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit flip": (flip, r"layer-0000-embed.safetensors was changed: its sha256"),
    "hole": (punch, r"layer-0000-embed.safetensors was changed"),
    "truncation": (lambda path: os.truncate(path, 100), r"layer-0000-embed.safetensors has 100 bytes instead of \d+"),
    "missing shard": (Path.unlink, r"layer-0000-embed.safetensors is missing"),
    "swapped shards": (swap, r"layer-0000-embed.safetensors has \d+ bytes instead of"),
    "link": (linked, r"layer-0000-embed.safetensors cannot be opened"),
    "pickle": (as_pickle, r"layer-0000-embed.safetensors has \d+ bytes instead of"),
    "edited manifest": (edited, r"manifest.json was changed: its content does not have the hash"),
    "reformatted manifest": (reformatted, r"manifest.json was changed"),
    "pickled manifest": (lambda path: as_pickle(path.with_name("manifest.json")), r"manifest.json is no manifest"),
    "empty manifest": (lambda path: path.with_name("manifest.json").write_text(""), r"manifest.json is no manifest"),
    "missing manifest": (lambda path: path.with_name("manifest.json").unlink(), r"manifest.json cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_checkpoint_before_is_used(
    damage: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    harm, message = DAMAGES[damage]
    harm(folder / "step-3" / "layer-0000-embed.safetensors")
    assert re.search(message, "; ".join(verify.problems(folder / "step-3")))
    step, wrong = newest(folder)
    assert step == 2 and re.search(message, wrong[0])
    alone = Alone(folder, MODEL, SPEC)
    assert alone.saved and alone.saved.step == 2
    assert re.search(f"checkpoint step-3 cannot be used: rank 0: .*{message}", alone.said[0])
    assert (folder / "step-3.damaged-1").is_dir()
    assert not Path("exploded").exists()


def test_where_no_checkpoint_is_whole_nothing_is_trained(folder: Path) -> None:
    for step in (1, 2, 3):
        flip(folder / f"step-{step}" / "layer-0000-embed.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint of this run can be used: .*step-3.*step-2.*step-1"):
        Alone(folder, MODEL, SPEC)
    assert layout.steps(folder) == [3, 2, 1]


def test_a_file_that_does_not_belong_is_never_opened(folder: Path, tmp_path: Path) -> None:
    as_pickle(folder / "step-3" / "optimizer.pt")
    alone = Alone(folder, MODEL, SPEC)
    assert alone.saved and alone.saved.step == 3
    assert layout.extra(folder / "step-3", alone.saved.manifest.files) == ["optimizer.pt"]


def resealed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A manifest with its own hash right, that was made by somebody else."""
    body = json.loads((folder / "step-3" / "manifest.json").read_text())
    body.pop("sha256")
    change(body)
    text = manifest._canonical({**body, "sha256": manifest._hash(body)})
    (folder / "step-3" / "manifest.json").write_text(text + "\n")
    return folder / "step-3"


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "layer-0000-../x.safetensors", "optimizer.pt"])
def test_a_manifest_cannot_point_out_of_its_folder(name: str, folder: Path) -> None:
    path = resealed(folder, lambda body: body["files"].update({name: {"bytes": 1, "sha256": "", "rank": 0}}))
    assert "cannot be a file of a checkpoint" in verify.problems(path)[0]


def test_another_format_is_refused_by_its_number(folder: Path) -> None:
    path = resealed(folder, lambda body: body.update(format=2))
    assert "has format 2; this vpipe reads 1" in verify.problems(path)[0]


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    given = {
        "nothing": torch.empty(0, 3),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "bytes": torch.arange(7, dtype=torch.uint8),
    }
    entry = tensors.write(tmp_path / "rank-0.safetensors", given, 0)
    found = tensors.read(tmp_path, "rank-0.safetensors", entry)
    assert found.keys() == given.keys()
    assert all(found[name].dtype == given[name].dtype and torch.equal(found[name], given[name]) for name in given)
    assert (tmp_path / "rank-0.safetensors").stat().st_mode & 0o777 == 0o600


def test_only_the_newest_are_kept_and_leftovers_go(run: Run, folder: Path) -> None:
    for name in ("step-4.tmp-1", "step-0.deleting", "step-007"):
        (folder / name).mkdir()
    assert layout.clean(folder) == ["step-0.deleting", "step-4.tmp-1"]
    assert layout.prune(folder, 2) == [1]
    assert sorted(os.listdir(folder)) == ["step-007", "step-2", "step-3"]
    assert layout.prune(folder, 0) == [2]


# Several ranks.


def test_a_rank_that_cannot_write_ends_the_run_and_says_why(tmp_path: Path) -> None:
    """Something stands in the way of rank 1's file."""
    run = Run(tmp_path / "run", job_of(SPEC, [1, 2]), MODEL)
    take = Camera.take

    def mutant(camera: Camera) -> Snapshot:
        (run.folder / "step-1.tmp-1" / "rank-1.safetensors").mkdir(parents=True)
        return take(camera)

    def mutate(rank: int) -> None:
        if rank == 1:
            Camera.take = mutant  # type: ignore[method-assign]

    first, second = run.failures(mutate)
    assert isinstance(second, CheckpointError) and "File exists" in str(second)
    assert re.search(r"rank 1 cannot write checkpoint step-\d below .*; then `vpipe resume`", str(second), re.DOTALL)
    assert isinstance(first, PeerLost)
    assert run.steps() == []


def test_replicas_that_differ_by_one_bit_are_named(tmp_path: Path) -> None:
    """And the checkpoint before stays."""

    def mutate(rank: int) -> None:
        take = Camera.take

        def mutant(camera: Camera) -> Snapshot:
            parameter = camera._executor.parameters()["head.decoder.bias"]
            if rank == 2 and camera._executor.stages[1].updates == 2:
                parameter.data.view(torch.int32)[3] ^= 1 << 20
            return take(camera)

        Camera.take = mutant  # type: ignore[method-assign]

    run = Run(tmp_path / "run", job_of(SPEC, [1, 2], replicas=[1, 2]), MODEL)
    first = run.attempt(lambda rank: mutate(rank) if rank else None)[0]
    assert isinstance(first, Failure)
    assert "after step 2 rank 2 has another head.decoder.bias than rank 1, a replica of the same stage" in first.text
    assert run.steps() == [1]


def test_a_rank_that_never_reports_is_named(tmp_path: Path) -> None:
    """The others do not wait for ever, and nothing is committed."""

    def mute(rank: int) -> None:
        if rank == 1:
            Commit.report = lambda self, step, report: None  # type: ignore[method-assign]

    run = Run(tmp_path / "run", job_of(spec(run={"steps": 1}, checkpoint={"timeout": 0.3}), [1, 2]), MODEL)
    first = run.attempt(mute)[0]
    assert isinstance(first, Failure)
    assert "rank 1 has not written its part of checkpoint step-1 within 0.3 s" in first.text
    assert run.steps() == []


def apart(rank: int) -> None:
    """Ranks on disks of their own, two on each."""
    own = property(lambda self: self.folder / f"disk-{rank // 2}")
    RunFiles.checkpoints = own  # type: ignore[method-assign,assignment]


def test_on_disks_of_their_own_each_host_commits_its_part(tmp_path: Path) -> None:
    job = job_of(spec(), [1, 1, 1], replicas=[1, 1, 1])
    whole = Run(tmp_path / "whole", job, MODEL).train()
    run = Run(tmp_path / "run", job, MODEL)
    disks = [run.files.folder / f"disk-{number}" for number in (0, 1)]

    def apart_and_killed(rank: int) -> None:
        apart(rank)
        kill_at(10, only=1, once=lambda: [layout.steps(disk) for disk in disks] == [[8, 4], [8, 4]])(rank)

    run.failures(apart_and_killed)
    flip(disks[1] / "step-8" / "layer-0002-head.safetensors")
    run.train(apart)
    assert re.search(r"cannot be used: rank 2: .*disk-1/step-\d/layer-0002-head.safetensors was changed", run.log())
    found = manifest.read(disks[0] / "step-12")
    assert {name: found.files[file].sha256 for name, file in found.layers.items()}.items() <= whole.state().items()
    assert [verify.problems(disk / "step-12") for disk in disks] == [[], []], "each has a copy of the other's part"
    assert [layout.extra(disk / "step-12", found.files) for disk in disks] == [[], []]
    assert not [name for disk in disks for name in os.listdir(disk) if "tmp" in name or name.startswith(".")]


def test_a_job_may_want_no_checkpoints(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", job_of(spec(run={"steps": 2}, checkpoint={"every_steps": None}), [3]), MODEL).train()
    assert os.listdir(run.folder) == []
