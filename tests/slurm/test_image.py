"""The image of a run on a node of Slurm: sent by sbcast, or copied from shared storage; verified either way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.slurm import gang
from tests.slurm.cluster import Slurm
from tests.slurm.fixtures import _slurm, slurm
from tests.slurm.login import Login
from tests.slurm.test_login import login
from vpipe_cli.container.store import Image
from vpipe_cli.launch import Surroundings, resolve
from vpipe_cli.machines import slots
from vpipe_cli.placing import Shipped
from vpipe_cli.runs.store import Run, create, new_id
from vpipe_cli.shipped import code
from worker.hostd.image import settle
from worker.hostd.words import Refused
from worker.spec.cluster import ClusterSpec

__all__ = ["_slurm", "login", "slurm"]

SAYS = "import os; open('/vpipe/run/attempt-1/rank-0.ready', 'w'); print('in', os.environ['APPTAINER_CONTAINER'])"
SPEC = {"machines": ["node1:cpu"], "engine": "slurm", "pipeline": {"stages": 1}}


def begun(image: Image, **more: object) -> Run:
    """A run of one rank that says which image it is in, queued with these sections of cluster.yml."""
    spec = ClusterSpec.model_validate({**SPEC, "container": {"image": str(image.path)}, **more})
    run = create(new_id("gang"), "slurm")
    shipped = Shipped(code().digest, image.sha256)
    launch = resolve(spec, run.id, run.files, slots(spec.machines), Surroundings.here(), shipped=shipped)
    (rank,) = launch.ranks
    rank = rank.model_copy(update={"argv": [*rank.argv[: rank.argv.index("-m")], "-c", SAYS]})
    gang.ENGINE.start(run, launch.model_copy(update={"ranks": [rank]}), "")
    return run


def test_ranks_run_in_the_image_that_sbcast_sent(
    slurm: Slurm, small_image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    asked = {"nodes": 1, "image": "sbcast", "node_folder": str(tmp_path / "node"), "extra": ["--hold"]}
    run = begun(small_image, slurm=asked)
    told = json.loads((run.folder / "slurm" / "node1.json").read_text())
    told["node_image"]["source"] = "/nowhere"  # so that it cannot have been copied
    (run.folder / "slurm" / "node1.json").write_text(json.dumps(told))
    slurm.run("scontrol", "release", gang.job(run))
    assert gang.end(run).state == "succeeded"
    image = tmp_path / "node" / f"vpipe-images-{small_image.sha256[:12]}" / f"{small_image.sha256}.sif"
    assert f"in {image}" in run.files.log(1, 0).read_text()


def test_an_image_goes_through_the_login_node(login: Login, small_image: Image) -> None:
    run = begun(small_image, slurm={"nodes": 1, "login": "h1"}, ssh={"config": login.ssh_config})
    assert gang.end(run).state == "succeeded"
    assert f"in {login.home}/images/{small_image.sha256}.sif" in run.files.log(1, 0).read_text()


def test_what_sbcast_left_unfinished_is_copied_and_what_is_another_image_is_refused(tmp_path: Path) -> None:
    shared, target = tmp_path / "shared.sif", tmp_path / "node" / "image.sif"
    shared.write_bytes(b"whole")
    digest = hashlib.sha256(b"whole").hexdigest()
    target.parent.mkdir()
    target.with_name("image.sif.part").write_bytes(b"who")
    settle(str(shared), str(target), digest)
    assert target.read_bytes() == b"whole" and target.stat().st_mode & 0o777 == 0o400
    with pytest.raises(Refused, match="is not what the launch was worked out with"):
        settle(str(shared), str(tmp_path / "node" / "other.sif"), "0" * 64)
    assert sorted(path.suffix for path in target.parent.iterdir()) == [".lock", ".lock", ".sif"]
