"""`vpipe image` as a user types it, on machines reached by SSH, with a real image."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testbed.host import Host
from tests.testbed.network import Testbed
from vpipe_cli.container import store
from vpipe_cli.container.command import environment, wrap
from vpipe_cli.container.ship import Step, ship
from vpipe_cli.container.store import Image
from vpipe_cli.transport.connect import connect
from worker.errors import UnreachableError
from worker.spec.ssh import SshSpec

Ended = subprocess.CompletedProcess[str]


@pytest.fixture
def hosts(testbed: Testbed) -> list[Host]:
    return testbed.take(2)


@pytest.fixture
def cluster(tmp_path: Path, testbed: Testbed, small_image: Image) -> Path:
    path = tmp_path / "cluster.yml"
    path.write_text(
        "machines: ['h[1-2]:cpu*1']\n"
        f"ssh: {{config: {testbed.ssh_config}, known_hosts: {testbed.known_hosts}}}\n"
        f"container: {{image: {small_image.path}}}\n"
    )
    return path


def vpipe(folder: Path, *arguments: str) -> Ended:
    return subprocess.run(
        [sys.executable, "-m", "vpipe_cli.app", "image", *arguments],
        cwd=folder,
        env={**os.environ, "VPIPE_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_shipped_run_damaged_repaired(tmp_path: Path, hosts: list[Host], cluster: Path, small_image: Image) -> None:
    shipped = vpipe(tmp_path, "ship", "cluster.yml", "-o", "json")
    assert shipped.returncode == 0, shipped.stderr
    document = json.loads(shipped.stdout)
    path = f"/root/.vpipe/images/{small_image.sha256}.sif"
    assert (document["schema"], document["sha256"]) == (1, small_image.sha256)
    assert [(row["host"], row["path"]) for row in document["hosts"]] == [("h1", path), ("h2", path)]
    assert {row["from"] for row in document["hosts"]} in ({"localhost", "h1"}, {"localhost", "h2"})

    again = json.loads(vpipe(tmp_path, "ship", "cluster.yml", "-o", "json").stdout)
    assert [row["from"] for row in again["hosts"]] == [None, None]

    image = hosts[1].path(path)
    image.chmod(0o600)
    with image.open("r+b") as file:
        file.seek(small_image.size // 2)
        file.write(b"damaged")
    refused = vpipe(tmp_path, "ship", "cluster.yml")
    assert refused.returncode == 106
    assert refused.stderr.startswith(f"error: h2: the image {path} is damaged: its sha256 is ")
    assert refused.stderr.endswith("hint: `vpipe image ship --repair` replaces it\n")
    verified = vpipe(tmp_path, "verify", "cluster.yml", "-o", "json")
    assert verified.returncode == 106
    answers = json.loads(verified.stdout)["hosts"]
    assert [answers[host]["images"][0]["ok"] for host in ("h1", "h2")] == [True, False]
    assert vpipe(tmp_path, "ship", "cluster.yml", "--repair").returncode == 0
    assert vpipe(tmp_path, "verify", "cluster.yml").returncode == 0


def test_a_rank_inside_over_ssh_and_an_image_in_use_stays(
    tmp_path: Path, testbed: Testbed, hosts: list[Host], cluster: Path, small_image: Image
) -> None:
    assert vpipe(tmp_path, "ship", "cluster.yml").returncode == 0
    path = f"/root/.vpipe/images/{small_image.sha256}.sif"
    code = "import os, socket, sys; print(socket.gethostname(), os.environ['A'], flush=True); sys.stdin.read()"
    with connect(["h1", "h2"], SshSpec(config=str(testbed.ssh_config))) as reached:
        env = [f"{name}={value}" for name, value in environment({"A": "1"}, {"PATH": os.environ["PATH"]}).items()]
        rank = reached["h1"].open(["env", *env, *wrap(["python3", "-c", code], path)], timeout=30)
        assert rank.read(30) == b"h1 1\n"
        for host in hosts:  # nothing was used a moment ago any more
            stamp = host.path(path).with_suffix(".json")
            stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "used": 1.0}))
        pruned = json.loads(vpipe(tmp_path, "prune", "cluster.yml", "--keep", "0", "-o", "json").stdout)["hosts"]
        assert [image["why"] for image in pruned["h1"]["kept"]] == ["in use"] and pruned["h1"]["removed"] == []
        assert [image["sha256"] for image in pruned["h2"]["removed"]] == [small_image.sha256]
        rank.close()
    assert not hosts[1].path(path).exists()
    listed = json.loads(vpipe(tmp_path, "ls", "cluster.yml", "-o", "json").stdout)["hosts"]
    assert [len(listed[host]["images"]) for host in ("h1", "h2")] == [1, 0]


def test_this_machine_alone(tmp_path: Path, small_image: Image) -> None:
    assert vpipe(tmp_path, "ls").stderr == "no image yet\n"
    built = vpipe(tmp_path, "build", str(small_image.path), "-o", "json")
    assert json.loads(built.stdout)["sha256"] == small_image.sha256
    wrong = [
        (("prune",), 2, "say what may stay"),
        (("prune", "--max-size", "20X"), 2, "'20X' is no size"),
        (("build", "x.def", "NAME"), 2, "'NAME' is no NAME=VALUE"),
        (("build", "none.yml"), 2, "none.yml: no such file"),
        (("ship",), 2, "cluster.yml: no such file"),
    ]
    for arguments, code, said in wrong:
        ended = vpipe(tmp_path, *arguments)
        assert (ended.returncode, ended.stdout) == (code, "") and said in ended.stderr, arguments


def test_an_upload_that_is_cut_half_way_goes_on_where_it_was(
    testbed: Testbed, small_image: Image, tmp_path: Path
) -> None:
    """The server's process dies in the midst of it; what has come by then is not sent again."""
    (host,) = testbed.take(1)
    ssh, half = SshSpec(config=str(testbed.ssh_config)), small_image.size // 2

    def cut(step: Step) -> None:
        if step.what == "uploading" and step.done > half:
            for login in host.logins():
                os.kill(login, signal.SIGKILL)

    with connect(["h1"], ssh) as hosts, pytest.raises(UnreachableError, match="h1"):
        ship(hosts, small_image.path, small_image.sha256, cut)
    steps: list[Step] = []
    images = host.path("/root/.vpipe/images")
    assert not list(images.glob("*.sif"))
    with connect(["h1"], ssh) as hosts:
        ship(hosts, small_image.path, small_image.sha256, steps.append)
    sent = [step.done for step in steps if step.what == "uploading"]
    assert sent[0] > half - (8 << 20) and sent[-1] == small_image.size  # some was on its way when it was cut
    assert store.digest(images / f"{small_image.sha256}.sif") == small_image.sha256
