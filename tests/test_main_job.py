"""The main job as a user runs it: real processes, real text, the command line from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig import wait_for
from worker.hostd.processes import find_strays
from worker.spec.files import RunFiles, read_events

CLUSTER = """
name: small
machines: [cpu*2]
model: {name: bert, hidden_size: 32, num_layers: 2, num_heads: 2}
data: {source: text, path: corpus, sequence_length: 32, minibatch_size: 4, vocab_size: 500}
optimizer: {name: adamw, lr: 1e-3, clip_grad_norm: 1.0}
run: {steps: 20, threads: 1, stall_timeout: 20}
"""


class Shell:
    """A folder with a cluster.yml and a corpus, and the `vpipe` command in it."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.env = {**os.environ, "VPIPE_HOME": str(self.home), "VPIPE_CACHE": str(cache)}
        (folder / "cluster.yml").write_text(CLUSTER)
        corpus = folder / "corpus"
        corpus.mkdir()
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("a*.py")):
            (corpus / path.name).write_text(path.read_text())

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vpipe_cli.app", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str, expect: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=150)
        assert process.returncode == expect, out + err
        assert "Traceback" not in err
        return out

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.run("status", "-o", "json"))
        return status

    def newest(self) -> RunFiles:
        return RunFiles(wait_for(lambda: sorted(self.home.glob("runs/*/job.json")))[-1].parent)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenised corpus, made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def shell(tmp_path: Path, cache: Path) -> Iterator[Shell]:
    """Whatever a test leaves running is asked to stop: the file ``stop`` is all that hostd waits for."""
    made = Shell(tmp_path, cache)
    yield made
    for job in made.home.glob("runs/*/job.json"):
        RunFiles(job.parent).stop.touch()


def state_of(files: RunFiles) -> str:
    return [event["state"] for event in read_events(files.events) if event["event"] == "state"][-1]


def trains(files: RunFiles) -> bool:
    """Whether all ranks have finished a few steps."""
    paths = [files.metrics(0), files.metrics(1)]
    return all(path.exists() and path.read_text().count("\n") > 3 for path in paths)


def test_a_run_ends_with_a_result_a_status_and_a_picture(shell: Shell) -> None:
    document = json.loads(shell.run("launch", "-o", "json"))
    assert (document["schema"], document["state"], document["step"]) == (1, "succeeded", 20)
    files = RunFiles(Path(document["folder"]))
    assert files.loss_plot.read_bytes().startswith(b"\x89PNG")
    status = shell.status()
    assert status["result"] == json.loads(files.result.read_text()) == document["result"]
    assert [rank["state"] for rank in status["ranks"]] == ["succeeded"] * 2
    assert all(stage["peak_memory_bytes"] > 10**8 for stage in status["result"]["stages"])


def test_any_number_of_stages_ends_with_the_same_weights(shell: Shell) -> None:
    common = ["sync_mode=bsp", "minibatches_per_step=4", "steps=3", "-o", "json"]
    ways = [
        ["machines=[cpu]"],
        ["machines=[cpu*3]", "recompute_ratio=0.5", "pipeline.schedule=zb-h1"],
        ["machines=[cpu*2]", "pipeline.schedule=interleaved"],
        ["machines=[cpu*2]", "pipeline.schedule=zb-v"],
    ]
    digests = {json.loads(shell.run("launch", *way, *common))["result"]["weights_sha256"] for way in ways}
    assert len(digests) == 1


def test_killing_the_command_leaves_the_run_and_every_byte_of_its_logs(shell: Shell) -> None:
    command = shell.start("launch", "steps=400")
    files = shell.newest()
    wait_for(lambda: trains(files))
    command.kill()
    command.communicate()
    assert state_of(files) == "running"
    shown = shell.run("logs", "-f", "-o", "jsonl")
    assert state_of(files) == "succeeded"
    told = [json.loads(line) for line in shown.splitlines()]
    for rank in (0, 1):
        written = [line.split(" ", 2)[2] for line in files.log(1, rank).read_text().splitlines()]
        assert [record["text"] for record in told if record["rank"] == rank] == written
        assert any(line.startswith("step 400/400") for line in written[-2:])  # the last may speak of a checkpoint


def test_a_killed_rank_is_named_and_takes_all_with_it(shell: Shell) -> None:
    command = shell.start("launch", "steps=100000")
    files = shell.newest()
    wait_for(lambda: trains(files))
    starts = [event for event in read_events(files.events) if event["event"] == "rank-start"]
    os.kill(next(event["pid"] for event in starts if event["rank"] == 1), signal.SIGKILL)
    out, err = command.communicate(timeout=90)
    assert command.returncode == 100
    assert re.search(r"rank 1 \(localhost, stage 1\)\s+killed by\s+SIGKILL", out + err)
    assert "step 1/100000" in out + err
    assert find_strays(files.folder.name) == []
    status = shell.status()
    assert (status["state"], status["first_failure"]["rank"]) == ("failed", 1)


def test_stop_ends_the_run(shell: Shell) -> None:
    shell.run("launch", "steps=100000", "--detach")
    files = shell.newest()
    wait_for(lambda: trains(files))
    shell.run("stop")
    assert shell.status()["state"] == "stopped"
    assert find_strays(files.folder.name) == []


def test_dry_run_starts_and_writes_nothing(shell: Shell) -> None:
    launch = json.loads(shell.run("launch", "--dry-run", "-o", "json"))
    assert [rank["rank"] for rank in launch["ranks"]] == [0, 1]
    assert not shell.home.exists()


def test_a_loss_that_is_no_number_names_stage_and_minibatch(shell: Shell) -> None:
    out = shell.run("launch", "lr=1e30", "optimizer.name=sgd", "clip_grad_norm=null", "steps=50", expect=100)
    assert re.search(r"stage 1: loss (nan|inf) at minibatch \d+", out)


def test_a_gpu_is_refused_before_anything_starts(shell: Shell) -> None:
    process = shell.start("launch", "machines=[localhost:0]")
    _, err = process.communicate(timeout=90)
    assert process.returncode == 104
    assert "rank 0 is placed on cuda:0" in err
    assert not shell.home.exists()


def test_a_schedule_that_does_not_fit_is_refused_before_anything_starts(shell: Shell) -> None:
    process = shell.start("launch", "sync_mode=asp", "schedule=2bw", "pipeline.schedule=2bw", "minibatches_per_step=1")
    _, err = process.communicate(timeout=90)
    assert process.returncode == 2
    assert "error" in err
    assert not shell.home.exists()
