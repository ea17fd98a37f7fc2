"""The same cluster.yml on this machine, over SSH and on Slurm: the same plan and the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rig import SLOW, wait_for, with_token
from tests.slurm import gang
from tests.slurm.cluster import Slurm
from tests.slurm.fixtures import _slurm, slurm
from tests.slurm.login import Login
from tests.testbed.network import Testbed
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.store import Run, find
from worker.spec.files import read_events
from worker.spec.records import FINAL

__all__ = ["_slurm", "slurm"]

CLUSTER = """
name: small
machines: [cpu*2]
ssh: {{config: {config}}}
slurm: {{nodes: 2, time: {minutes}, save_before: 60}}
python: {python}
model: {{name: bert, hidden_size: 32, num_layers: 2, num_heads: 2}}
data: {{source: text, path: {corpus}, sequence_length: 32, minibatch_size: 4, vocab_size: 400}}
pipeline: {{{pipeline}}}
optimizer: {{name: adamw, lr: 1e-3, clip_grad_norm: 1.0}}
checkpoint: {{every_steps: {every}}}
run: {{steps: {steps}, threads: 1, max_restarts: 1}}
"""
MODES = {
    "bsp": {"pipeline": "sync_mode: bsp, minibatches_per_step: 4", "every": 1000},
    "asp": {"pipeline": "sync_mode: asp", "every": 20},
}


class Shell:
    """A folder with one cluster.yml for all engines, and the ``vpipe`` command in it."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self._config = folder, config
        self.env = {**os.environ, "VPIPE_HOME": str(folder / "home"), "VPIPE_CACHE": str(folder / "cache")}
        self.corpus = folder / "corpus"
        self.corpus.mkdir()
        for number in range(4):  # small, so that the tokenizer is trained in no time
            words = " ".join(f"def f{n}(x): return x + {n * number} # {n % 7}" for n in range(400))
            (self.corpus / f"{number}.py").write_text(words.replace("#", "\n"))

    def write(self, mode: str, steps: int, minutes: int = 10) -> None:
        given: dict[str, Any] = {"config": self._config, "python": sys.executable, "corpus": self.corpus}
        text = CLUSTER.format(**given, **MODES[mode], steps=steps, minutes=minutes)
        (self.folder / "cluster.yml").write_text(text)

    def vpipe(self, *arguments: str, expect: int = 0, limit: float = 240.0) -> str:
        command = [sys.executable, "-m", "vpipe_cli.app", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=limit)
        assert done.returncode == expect, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def launch(self, *overrides: str) -> tuple[str, list[str], str]:
        """The plan of a whole run, what happened once it was on its machines, and the weights at its end."""
        document = json.loads(self.vpipe("launch", *overrides, "-o", "json"))
        assert with_token(document["run"]) == []
        plan = json.loads((Path(document["folder"]) / "plan.json").read_text())
        events = read_events(find(document["run"]).files.events)
        there = [event for event in events if event.get("state") not in ("planning", "shipping", "pending")]
        keys = ("event", "state", "rank", "attempt", "code", "cause")
        happened = sorted(str([event.get(key) for key in keys]) for event in there)  # ranks are not in step
        return str(plan["partition"]), happened, str(document["result"]["weights_sha256"])

    def begin(self) -> Run:
        """A run on Slurm that was left alone."""
        run = find(json.loads(self.vpipe("launch", "-d", "engine=slurm", "-o", "json"))["run"])
        return gang.running(run)

    def end(self, run: Run) -> str:
        """Its weights, once it has ended well."""
        assert gang.end(run).state == "succeeded"
        return str(json.loads(run.files.result.read_text())["weights_sha256"])


@pytest.fixture
def shell(tmp_path: Path, testbed: Testbed, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    return Shell(tmp_path, testbed.ssh_config)


def resumed(run: Run) -> list[int]:
    """The steps at which it went on."""
    return [event["step"] for event in read_events(run.files.events) if event["event"] == "resumed"]


def test_one_file_on_three_engines(shell: Shell, testbed: Testbed) -> None:
    hosts = testbed.take(2)
    shell.write("bsp", steps=6)
    here = shell.launch()
    machines = json.dumps([f"{host.name}:cpu" for host in hosts])
    assert shell.launch(f"machines={machines}", "engine=ssh") == here
    assert shell.launch("engine=slurm") == here
    assert "1/s1 n2 | " in shell.vpipe("logs", "--rank", "1")


def test_an_unknown_partition_is_told_in_one_line(shell: Shell) -> None:
    shell.write("bsp", steps=6)
    command = [sys.executable, "-m", "vpipe_cli.app", "launch", "engine=slurm", "slurm.partition=nowhere"]
    done = subprocess.run(command, cwd=shell.folder, env=shell.env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 104
    assert "Slurm refuses the job: invalid partition specified: nowhere" in done.stderr.splitlines()[0]


@pytest.mark.parametrize("mode", ["bsp", pytest.param("asp", marks=SLOW)])
def test_saved_on_a_signal_and_after_a_killed_rank_the_weights_are_the_same(
    shell: Shell, slurm: Slurm, mode: str
) -> None:
    shell.write(mode, steps=150 if mode == "bsp" else 400)
    run = shell.begin()
    slurm.run("scancel", "--signal=USR1", "--batch", gang.job(run))
    gang.running(run, attempt=2)
    gang.kill(gang.rank_on(run, "n1"), signal.SIGKILL)
    there = shell.end(run)
    assert len(resumed(run)) == 2
    assert there == shell.launch("engine=local")[-1]


@pytest.mark.timeout(1200)
@SLOW
def test_a_job_longer_than_its_time_limit(shell: Shell, slurm: Slurm) -> None:
    shell.write("bsp", steps=900, minutes=2)
    run = shell.begin()
    wait_for(lambda: standing(run).state in FINAL, 900)
    there = shell.end(run)
    assert len(resumed(run)) >= 1
    assert there == shell.launch("engine=local")[-1]


@SLOW
def test_launched_and_resumed_from_a_machine_without_slurm(shell: Shell, slurm: Slurm, testbed: Testbed) -> None:
    shell.write("bsp", steps=6)
    Login(testbed, slurm, shell.folder)
    shell.env["SLURM_CONF"] = "/nowhere/slurm.conf"
    weights = shell.launch("engine=slurm", "slurm.login=h1", "checkpoint.every_steps=3")[-1]
    resumed = json.loads(shell.vpipe("resume", f"{find().id}@3", "-o", "json"))
    assert resumed["result"]["weights_sha256"] == weights
