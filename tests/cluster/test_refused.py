"""`vpipe launch` on hosts that it must not or cannot use: named, with the right exit code, and nothing begins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import gang
from tests.rig import wait_for
from tests.testbed.host import Host
from tests.testbed.network import Testbed
from vpipe_cli.container.store import Image
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.store import list_runs

Ended = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own; no process of any of its runs outlives the test."""
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    yield tmp_path
    for run in list_runs():
        for pid in [*gang.hostds(run), *gang.alive(run)]:
            os.kill(pid, signal.SIGKILL)


def write(folder: Path, testbed: Testbed, hosts: list[Host], more: str = "") -> None:
    machines = json.dumps([f"{host.name}:cpu" for host in hosts])
    text = (
        f"machines: {machines}\nssh: {{config: {testbed.ssh_config}, connect_timeout: 15}}\npython: {sys.executable}\n"
    )
    (folder / "cluster.yml").write_text(text + more)


def vpipe(folder: Path, *arguments: str) -> Ended:
    command = [sys.executable, "-m", "vpipe_cli.app", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150)


def refused(ended: Ended, code: int) -> str:
    """What is said of a launch that was refused, nothing of which began."""
    assert (ended.returncode, ended.stdout) == (code, ""), ended.stdout + ended.stderr
    assert ended.stderr.startswith("error: ") and "Traceback" not in ended.stderr, ended.stderr
    for run in list_runs():
        wait_for(lambda run=run: not gang.alive(run) and not gang.hostds(run))
        assert standing(run).state == "failed"
    return ended.stderr


def test_an_unknown_host_key(home: Path, testbed: Testbed) -> None:
    hosts = testbed.take(2)
    write(home, testbed, hosts)
    lines = testbed.known_hosts.read_text().splitlines()
    testbed.known_hosts.write_text("".join(f"{line}\n" for line in lines if hosts[1].address not in line))
    key = hosts[1].folder / "host_key.pub"
    shown = subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True).stdout.split()[1]
    said = refused(vpipe(home, "launch"), 105)
    assert f"h2: the key of {hosts[1].address} is unknown" in said and shown in said and "h1:" not in said
    assert "vpipe doctor CLUSTER.yml --trust" in said


def test_a_changed_host_key(home: Path, testbed: Testbed) -> None:
    (host,) = testbed.take(1)
    write(home, testbed, [host])
    host.kill()
    host.new_key()
    host.start()
    said = refused(vpipe(home, "launch"), 105)
    assert f"h1: the key of {host.address} has changed" in said and "SHA256:" in said


def test_a_host_that_is_down(home: Path, testbed: Testbed) -> None:
    hosts = testbed.take(3)
    write(home, testbed, hosts)
    hosts[1].kill()
    said = refused(vpipe(home, "launch", "ssh.connect_timeout=4"), 105)
    assert "h2" in said and "h1 " not in said and "h3 " not in said
    assert not any(host.path("/root/.vpipe/runs").exists() for host in (hosts[0], hosts[2]))


def test_a_host_where_others_could_change_the_run(home: Path, testbed: Testbed) -> None:
    """Its .vpipe is a link into a folder where everybody may write."""
    hosts = testbed.take(2)
    write(home, testbed, hosts)
    shared = hosts[1].path("/var/tmp/shared")
    shared.mkdir()
    shared.chmod(0o777)
    hosts[1].path("/root/.vpipe").symlink_to("/var/tmp/shared/ana")
    said = refused(vpipe(home, "launch"), 104)
    why = "others could change /root/.vpipe/runs: everyone may write in /var/tmp/shared"
    assert f"error: h2: disk runs: {why}" in said and "h1" not in said and "`chmod o-w`" in said
    assert list(shared.iterdir()) == []


def test_a_damaged_image_on_one_host(home: Path, testbed: Testbed, small_image: Image) -> None:
    hosts = testbed.take(2)
    write(home, testbed, hosts, f"container: {{image: {small_image.path}}}\n")
    assert vpipe(home, "image", "ship").returncode == 0
    damage(hosts[1], small_image)
    said = refused(vpipe(home, "launch", "data.source=synthetic"), 106)
    path = f"/root/.vpipe/images/{small_image.sha256}.sif"
    assert said.startswith(f"error: h2: the image {path} is damaged") and "`vpipe image ship --repair`" in said


def damage(host: Host, image: Image) -> None:
    """One bit of the image there is another one from now on."""
    path = host.path(f"/root/.vpipe/images/{image.sha256}.sif")
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(image.size // 2)
        byte = file.read(1)[0]
        file.seek(image.size // 2)
        file.write(bytes([byte ^ 1]))
