"""What doctor says of machines: of facts made up, of this machine, of hosts that are down or lack something."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.testbed.network import Testbed
from vpipe_cli.app import app
from vpipe_cli.doctor import Finding, refuse
from vpipe_cli.doctor.examine import examine_for, ports, silent, together
from vpipe_cli.doctor.gather import Report, facts
from vpipe_cli.doctor.judge import judge
from vpipe_cli.doctor.needs import Needs
from vpipe_cli.doctor.wants import needs_of
from vpipe_cli.onhost.send import NoPython
from vpipe_cli.render import findings as drawn
from vpipe_cli.transport.local import LocalTransport
from worker.errors import PreflightError, UnreachableError, UntrustedHost
from worker.spec.cluster import ClusterSpec

MIB, GIB = 1 << 20, 1 << 30


def well() -> dict[str, Any]:
    """The facts of a machine that has everything."""
    room = {"path": "/v", "free": 90 * GIB, "total": 100 * GIB, "files_free": 10**6, "writable": True, "mount": "/"}
    gpu = {"index": 0, "name": "NVIDIA A100", "total": 80 * GIB, "used": 0, "ecc": 0}
    return {
        "system": {"python": "3.9.2", "kernel": "6.1", "machine": "x86_64", "cores": 8, "load": 0.1, "memory": 64 * GIB}
        | {"hostname": "a"},
        "user_namespaces": {"allowed": True, "why": "", "apparmor": False},
        "container": {"program": "/usr/bin/apptainer", "name": "apptainer", "version": "1.4.5"}
        | {"setuid": False, "fuse": True},
        "disks": {name: {**room, "type": "ext4"} for name in ("runs", "images", "tmp", "shm")},
        "limits": {"nofile": [4096, 4096]},
        "linger": {"systemd": True, "kills": False, "lingers": False},
        "infiniband": [{"device": "mlx5_0", "port": "1", "state": "ACTIVE"}],
        "gpus": {"driver": "550.54", "cuda": "12.4", "devices": [gpu, {**gpu, "index": 1}], "processes": []},
        "worker": {"program": "/usr/bin/python3", "python": "3.11.2", "torch": "2.10", "numpy": "2", "pydantic": "2"},
        "interfaces": [{"name": "eth0", "address": "10.0.0.1", "mtu": 1500}],
    }


NEEDS = Needs(ranks=2, gpus=(0, 1), container=True, image_bytes=5 * GIB, image_cuda="12.1")
STORY: list[tuple[str, str, str, str, Any]] = [
    # check, verdict, what it says, path of the fact, its value
    ("disk runs", "fail", "50 MiB free", "disks.runs.free", 50 * MIB),
    ("disk runs", "warn", "1.0 GiB free", "disks.runs.free", GIB),
    ("disk runs", "fail", "may not be written to", "disks.runs.writable", False),
    ("disk runs", "warn", "on nfs4", "disks.runs.type", "nfs4"),
    ("disk images", "fail", "others could change /v: everyone", "disks.images.exposed", "everyone may write in /"),
    ("disk images", "fail", "needs 5.0 GiB", "disks.images.free", 4 * GIB),
    ("disk tmp", "fail", "only 3 more files", "disks.tmp.files_free", 3),
    ("shared memory", "warn", "64 MiB free", "disks.shm.free", 64 * MIB),
    ("apptainer", "fail", "neither apptainer nor", "container.program", None),
    (
        "user namespaces",
        "fail",
        "Operation not permitted",
        "user_namespaces",
        {"allowed": False, "apparmor": False} | {"why": "Operation not permitted"},
    ),
    ("user namespaces", "warn", "AppArmor", "user_namespaces.apparmor", True),
    ("fuse", "warn", "/dev/fuse", "container.fuse", False),
    ("gpus", "fail", "no GPU 1", "gpus.devices", [{"index": 0, "name": "A", "total": GIB, "used": 0, "ecc": None}]),
    ("gpus", "fail", "no nvidia-smi", "gpus.driver", None),
    ("driver", "fail", "the image has CUDA 12.1", "gpus.cuda", "11.8"),
    (
        "busy",
        "warn",
        "ana's process 7",
        "gpus.processes",
        [{"gpu": 1, "pid": 7, "used": 1, "name": "x", "user": "ana"}],
    ),
    ("worker", "fail", "no torch", "worker.torch", None),
    ("worker", "fail", "too old", "worker.python", "3.8.10"),
    ("worker", "fail", "there is no program /usr/bin/python3", "worker.python", None),
    ("limits", "warn", "256 open files", "limits.nofile", [256, 256]),
    ("linger", "fail", "at logout", "linger.kills", True),
    ("infiniband", "warn", "DOWN", "infiniband", [{"device": "m", "port": "1", "state": "DOWN"}]),
    ("load", "warn", "load 30.0", "system.load", 30.0),
    ("gpus", "warn", "could not be found out", "gpus", {"error": "OSError: nvidia-smi: driver mismatch"}),
]


def said(made: dict[str, Any], needs: Needs = NEEDS, offset: tuple[float, float] = (-0.01, 0.02)) -> list[Finding]:
    return judge("a", Report(made, offset), needs)


def test_a_machine_that_has_everything_is_well() -> None:
    assert {finding.verdict for finding in said(well())} == {"ok"}


@pytest.mark.parametrize("check, verdict, words, path, value", STORY, ids=[f"{each[0]}, {each[2]}" for each in STORY])
def test_what_is_wrong_is_said_with_what_mends_it(check: str, verdict: str, words: str, path: str, value: Any) -> None:
    made = well()
    *parts, last = path.split(".")
    place = made
    for part in parts:
        place = place[part]
    place[last] = value
    (bad,) = [finding for finding in said(made) if finding.check == check and finding.verdict != "ok"]
    assert bad.verdict == verdict and words in bad.fact
    assert bad.remedy or "could not be found out" in bad.fact


@pytest.mark.parametrize(
    ("offset", "verdict", "words"),
    [
        ((-0.2, 0.9), "ok", "within 0.9 s"),  # it may be right: the answer took that long
        ((2.0, 2.4), "warn", "2.0 s ahead of"),
        ((-7.5, -7.1), "warn", "7.1 s behind"),
    ],
)
def test_a_clock_is_judged_by_what_is_certain(offset: tuple[float, float], verdict: str, words: str) -> None:
    (clock,) = [finding for finding in said(well(), offset=offset) if finding.check == "clock"]
    assert clock.verdict == verdict and words in clock.fact


def test_what_only_several_hosts_tell() -> None:
    arm = well()
    arm["system"] = {**arm["system"], "machine": "aarch64"}
    found = list(together({"a": well(), "b": well(), "c": arm}, dict.fromkeys("abc", NEEDS)))
    assert [(each.host, each.check) for each in found if each.verdict == "fail"] == [("c", "architecture")]
    assert {each.host for each in found if each.check == "hostname"} == {"a", "b", "c"}


def test_ports_name_both_ends_and_every_address_tried() -> None:
    met = {"a": {"b": {"failed": {"10.0.0.2": "no answer within 3 s"}}}}
    (bad,) = ports(met, {"a": well()})
    assert bad.fact == "does not reach b (10.0.0.2: no answer within 3 s)" and "firewall" in bad.remedy


def test_a_silent_host_says_why() -> None:
    assert silent("a", UnreachableError("a: no route", "try: ssh a")).check == "reach"
    assert silent("a", UntrustedHost("a: unknown key SHA256:x", "--trust")).check == "key"
    assert silent("a", NoPython("a: no python3: not found", "install it")) == Finding(
        "a", "python3", "no python3: not found", "fail", "install it"
    )


def test_a_refusal_names_all_that_failed() -> None:
    bad = [Finding(host, "gpus", "no GPU 7", "fail", "write other ones") for host in "ab"]
    with pytest.raises(PreflightError, match="a: gpus: no GPU 7\nb: gpus") as error:
        refuse([Finding("a", "load", "high", "warn"), *bad])
    assert error.value.hint == "write other ones" and error.value.exit_code == 104
    refuse([Finding("a", "load", "high", "warn")])


def test_the_clock_offset_is_bracketed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's clock runs an hour late, and asking takes a while."""
    answers = facts({"x": LocalTransport()}, {"x": {}}, clock=lambda: time.time() - 3600)
    report = answers["x"]
    assert isinstance(report, Report)
    least, most = report.offset
    assert least <= 3600 <= most


def test_this_machine(tmp_path: Path) -> None:
    found = examine_for({"localhost": LocalTransport()}, {"localhost": Needs(ranks=1, root=str(tmp_path))})
    assert {"system", "clock", "disk runs", "shared memory", "limits", "linger"} <= {each.check for each in found}
    assert not [each for each in found if "could not be found out" in each.fact]


def test_an_interpreter_and_data_that_are_not_there(tmp_path: Path) -> None:
    reads = (("data.path", str(tmp_path)), ("evaluate.held_out", "/nowhere/text"))
    needs = Needs(ranks=1, python="/nowhere/python", reads=reads, root=str(tmp_path))
    found = examine_for({"localhost": LocalTransport()}, {"localhost": needs})
    told = {each.fact: each.verdict for each in found if each.check in ("worker", "data")}
    assert told == {
        "there is no program /nowhere/python": "fail",
        f"data.path: {tmp_path}": "ok",
        "evaluate.held_out: no such file or folder: '/nowhere/text'": "fail",
    }


def test_only_hosts_of_the_first_stage_need_the_data() -> None:
    pipeline = {"stages": 2, "replicas": [3, 1], "sync_mode": "bsp", "minibatches_per_step": 3}
    given = {"machines": ["a:cpu*2", "b:cpu", "c:cpu"], "engine": "ssh", "pipeline": pipeline}
    spec = ClusterSpec.model_validate({**given, "data": {"source": "text", "path": "/text"}})
    assert [bool(needs_of(spec, host).reads) for host in "abc"] == [True, True, False]


def test_hosts_of_which_some_are_down(testbed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hosts: one fine, one without power, one whose key nobody knows yet. Then its key is recorded."""
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    good, down, strange = testbed.take(3)
    down.kill()
    known = testbed.known_hosts.read_text().splitlines()
    testbed.known_hosts.write_text("\n".join(line for line in known if strange.address not in line.split()[0]) + "\n")
    file = tmp_path / "cluster.yml"
    machines = json.dumps([f"{host.name}:cpu" for host in (good, down, strange)])
    ssh = f"{{config: {testbed.ssh_config}, connect_timeout: 3}}"
    file.write_text(f"machines: {machines}\nengine: ssh\nssh: {ssh}\npython: {sys.executable}\n")
    ended = CliRunner().invoke(app, ["doctor", str(file), "-o", "json"])
    assert ended.exit_code == 104
    document = json.loads(ended.stdout)
    failed = {(each["host"], each["check"]) for each in document["findings"] if each["verdict"] == "fail"}
    assert failed == {(down.name, "reach"), (strange.name, "key")}
    assert any("SHA256:" in each["fact"] for each in document["findings"] if each["check"] == "key")
    assert not document["ok"] and document["seconds"] < 20
    CliRunner().invoke(app, ["doctor", str(file), "--trust", "-y"])
    again = json.loads(CliRunner().invoke(app, ["doctor", str(file), "-o", "json"]).stdout)["findings"]
    assert {each["host"] for each in again if each["verdict"] == "fail"} == {down.name}
    reached = {each["host"]: each["fact"] for each in again if each["check"] == "ports"}
    assert reached == {
        good.name: f"reaches {strange.name} over eth0 ({good.address})",
        strange.name: f"reaches {good.name} over eth0 ({strange.address})",
    }


def test_a_host_without_python(testbed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    (host,) = testbed.take(1)
    programs = host.path("/root/bin")
    programs.mkdir()
    for program in ("bash", "sh", "cat", "base64", "printf", "tr", "stty"):
        (programs / program).symlink_to(f"/usr/bin/{program}")
    host.path("/root/.bashrc").write_text("PATH=/root/bin\n")
    file = tmp_path / "cluster.yml"
    file.write_text(f'machines: ["{host.name}:cpu"]\nengine: ssh\nssh: {{config: {testbed.ssh_config}}}\n')
    ended = CliRunner().invoke(app, ["doctor", str(file)])
    assert ended.exit_code == 104
    assert "python3" in ended.stdout and "Python 3.8 or newer" in ended.stdout


def test_the_table_says_alike_things_once() -> None:
    from rich.console import Console

    found = [Finding(host, "fuse", "no", "warn", "open it") for host in "abcdef"] + [Finding("a", "gpus", "[/red]")]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(drawn.table(found))
    text = console.export_text()
    assert text.count("fuse") == 2 and "all 6" in text and "[/red]" in text
