"""What ``launch --dry-run -o json`` prints is what then runs: asked of the ranks themselves, here and over SSH.

Over SSH with strings that would do harm wherever cluster.yml takes any: they arrive as they are, and nothing runs them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.hostile import CANARY, EVIL
from tests.rig import wait_for
from tests.testbed.host import Host
from tests.testbed.network import Testbed
from vpipe_cli import yamltree
from vpipe_cli.app import app
from worker.spec.files import RunFiles, read_events

WORST = f"{EVIL}\n; touch {CANARY}\n\x1b]0;x\x07\u202e"
MODEL = """
import json, os, socket
from torch import nn

def build(vocab_size, label):
    if "VPIPE_RANK" in os.environ:  # else it is asked for its layers only
        here = {name: open(f"/proc/self/{name}").read() for name in ("cmdline", "environ")}
        told = {**here, "cwd": os.getcwd(), "machine": socket.gethostname(), "label": label}
        print("TOLD", json.dumps(told), flush=True)
    return nn.Sequential(nn.Embedding(vocab_size, 4), nn.Linear(4, 4), nn.Linear(4, vocab_size))
"""
ROOT = Path(__file__).parents[2]
ADDED = {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}
"""What hostd adds beside VPIPE_*, because only the host knows it."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are typed."""
    for name in ("home", "cache"):
        monkeypatch.setenv(f"VPIPE_{name.upper()}", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vpipe(*arguments: str) -> Any:
    """The JSON that a command prints. In this process: what the model's code says of its layers is asked for once."""
    ended = CliRunner().invoke(app, [*arguments, "-o", "json"])
    assert ended.exit_code == 0, (ended.output, ended.exception)
    return json.loads(ended.stdout)


def dried_and_run(*options: str) -> tuple[dict[str, Any], RunFiles]:
    """What the dry run of the folder's cluster.yml said, with the name that the run then had; the files of the run."""
    dry = vpipe("launch", "--dry-run")
    assert not Path("home").exists()
    done = vpipe("launch", *options)
    said: dict[str, Any] = json.loads(json.dumps(dry).replace(dry["run"], done["run"]))
    return said, RunFiles(Path(done["folder"]))


def begun_with(process: Path) -> dict[str, Any]:
    """What the kernel says of a process."""
    cmdline, environ = ((process / name).read_text() for name in ("cmdline", "environ"))
    return {"cmdline": cmdline, "environ": environ, "cwd": os.readlink(process / "cwd")}


def told(log: Path) -> dict[str, Any]:
    """What a rank says of itself."""
    line = next(line for line in log.read_text().splitlines() if " o TOLD " in line)
    found: dict[str, Any] = json.loads(line.partition(" TOLD ")[2])
    return found


def assert_as_said(said: dict[str, Any], files: RunFiles, root: str, found: list[dict[str, Any]]) -> None:
    """Argv, environment, folder, place and job of every rank are those of the dry run."""
    assert json.loads(files.launch.read_bytes()) == said
    assert json.loads(files.job.read_bytes()) == said["job"]
    for rank, real in zip(json.loads(json.dumps(said["ranks"]).replace("~/.vpipe", root)), found, strict=True):
        assert (real["cmdline"].split("\0")[:-1], real["cwd"]) == (rank["argv"], rank["cwd"])
        env = dict(pair.split("=", 1) for pair in real["environ"].split("\0")[:-1])
        assert (env["VPIPE_HOST"], env["VPIPE_RANK"]) == (rank["host"], str(rank["rank"]))
        assert {name: env.get(name) for name in rank["env"]} == rank["env"]
        more = {name for name in env if name not in rank["env"] and not name.startswith("VPIPE_")}
        assert more <= {*rank["inherit"], *ADDED}


def test_a_run_here_is_what_the_dry_run_said(folder: Path) -> None:
    """Of a rank that has only begun: the kernel knows what it was begun with."""
    (folder / "cluster.yml").write_text("machines: [cpu*2]\nrun: {steps: 100000}\n")
    said, files = dried_and_run("--detach")
    events = wait_for(lambda: len(found := starts(files)) == 2 and found)
    found = {event["rank"]: begun_with(Path(f"/proc/{event['pid']}")) for event in events}
    vpipe("stop")
    assert_as_said(said, files, "", [found[0], found[1]])


def starts(files: RunFiles) -> list[dict[str, Any]]:
    return [event for event in read_events(files.events) if event["event"] == "rank-start"]


def test_a_run_over_ssh_is_what_the_dry_run_said(folder: Path, testbed: Testbed) -> None:
    """With hostile names and values wherever they are legal."""
    (host,) = testbed.take(1)
    prepare(host)
    (folder / "cluster.yml").write_text(yamltree.dump(hostile(folder, testbed)))
    said, files = dried_and_run()
    rank = told(files.log(1, 0))
    assert_as_said(said, files, "/root/.vpipe", [rank])
    assert (rank["machine"], rank["label"]) == ("h1", {WORST: [WORST]})
    there = host.path(f"/root/.vpipe/runs/{files.folder.name}/job.json")
    assert json.loads(there.read_bytes()) == said["job"]
    assert executed(folder, host) == []


def prepare(host: Host) -> None:
    """An interpreter and data whose paths are hostile, and the field of the data too."""
    host.path(f"/root/{WORST}").symlink_to(sys.prefix)
    records = [json.dumps({WORST: f"{number} " + "some words that a tokenizer can join " * 20}) for number in range(40)]
    for name in ("train", "held"):
        host.path(f"/root/{name} {WORST}").write_text("\n".join(records))


def hostile(folder: Path, testbed: Testbed) -> dict[str, Any]:
    """A cluster.yml with all of it."""
    code, config, key, known = (folder / f"{name} {WORST}" for name in ("code", "config", "key", "known"))
    code.mkdir()
    (code / "mine.py").write_text(MODEL)
    without = testbed.ssh_config.read_text().replace(str(testbed.known_hosts), "none").replace(str(testbed.key), "none")
    config.write_text(without)
    shutil.copy(testbed.key, key)
    shutil.copy(testbed.known_hosts, known)
    return {
        "machines": ["h1:cpu"],
        "ssh": {
            "config": str(config),
            "known_hosts": str(known),
            "key": str(key),
            "connect_timeout": 30.0,
        },
        "python": f"/root/{WORST}/bin/python{sys.version_info.major}",
        "model": {"entry": "mine:build", "code": str(code), "args": {"label": {WORST: [WORST]}}},
        "data": {
            "source": "jsonl",
            "path": f"/root/train {WORST}",
            "text_key": WORST,
            "sequence_length": 16,
            "vocab_size": 300,
            "minibatch_size": 2,
        },
        "evaluate": {"held_out": f"/root/held {WORST}", "every_steps": 2, "minibatches": 1},
        "run": {"steps": 2},
    }


def executed(folder: Path, host: Host) -> list[Path]:
    """What a shell would have made of it, in any folder of the client or the host that something runs in."""
    found = [path for place in (folder, *map(host.path, ("/root/.vpipe", "/var/tmp"))) for path in place.rglob(CANARY)]
    roots = [Path("/"), ROOT, host.path("/"), host.path("/root")]
    return found + [root / CANARY for root in roots if (root / CANARY).exists()]
