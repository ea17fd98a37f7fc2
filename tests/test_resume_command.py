"""Saving and resuming as a user does it: `vpipe launch`, `vpipe checkpoint`, `vpipe resume`, real processes."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.rig import wait_for
from tests.test_main_job import CLUSTER, Shell
from tests.test_names import our_logits, their_logits
from vpipe_cli import request
from vpipe_cli.runs.metrics import Curve, Meter
from worker import data
from worker.metrics import MetricsFile
from worker.recovery import export
from worker.spec.data import SyntheticSpec
from worker.spec.files import RunFiles, read_events
from worker.spec.job import Job

SAVING = CLUSTER + "checkpoint: {every_steps: 10, keep: 2}\npipeline: {sync_mode: bsp, minibatches_per_step: 2}\n"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    made = Shell(tmp_path_factory.mktemp("shell"), tmp_path_factory.mktemp("cache"))
    (made.folder / "cluster.yml").write_text(SAVING)
    return made


@pytest.fixture(scope="module")
def whole(shell: Shell) -> dict[str, Any]:
    """An undisturbed run of thirty steps."""
    document: dict[str, Any] = json.loads(shell.run("launch", "run.steps=30", "-o", "json"))
    return document


def both(shell: Shell, *arguments: str, expect: int = 0) -> str:
    process = shell.start(*arguments)
    out, err = process.communicate(timeout=90)
    assert process.returncode == expect, out + err
    return out + err


def weights(shell: Shell) -> str:
    return str(shell.status()["result"]["weights_sha256"])


def test_a_run_is_listed_verified_exported_and_resumed(shell: Shell, whole: dict[str, Any]) -> None:
    run = whole["run"]
    listed = json.loads(shell.run("checkpoint", "ls", run, "-o", "json"))["checkpoints"]
    assert [each["step"] for each in listed] == [30, 20]
    assert f"{run}@20 is whole" in shell.run("checkpoint", "verify", run)
    shell.run("checkpoint", "export", f"{run}@30", "--to", "out.safetensors")
    exported = safetensors.torch.load_file(shell.folder / "out.safetensors")
    assert exported["bert.embeddings.word_embeddings.weight"].shape == (500, 32)
    assert f"goes on from {run}@20" in both(shell, "resume", f"{run}@20")
    assert weights(shell) == whole["result"]["weights_sha256"]
    resumed = [event for event in read_events(shell.newest().events) if event["event"] == "resumed"]
    assert [(event["run"], event["step"]) for event in resumed] == [(run, 20)]


def test_from_pretrained_opens_an_exported_run_and_gives_its_logits(shell: Shell, whole: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    shell.run("checkpoint", "export", f"{whole['run']}@30", "--to", "opened/")
    opened = transformers.AutoModelForMaskedLM.from_pretrained(shell.folder / "opened").eval()
    folder = shell.home / "runs" / whole["run"]
    spec = Job.model_validate_json(RunFiles(folder).job.read_bytes()).spec
    made_up = SyntheticSpec(sequence_length=32, vocab_size=500)
    spec = spec.model_copy(update={"data": made_up, "model": spec.model.model_copy(update={"dropout": 0.0})})
    inputs = dict(data.open_source(spec, shell.folder).minibatch(0).inputs)
    ours = our_logits(spec, export.weights(folder / "checkpoints" / "step-30"), inputs)
    assert torch.allclose(ours, their_logits(opened, inputs), atol=1e-5, rtol=1e-4)


def test_a_damaged_checkpoint_is_passed_over_and_said(shell: Shell, whole: dict[str, Any]) -> None:
    both(shell, "launch", "--from", f"{whole['run']}@20", "run.steps=30", "machines=[cpu*3]")
    assert weights(shell) == whole["result"]["weights_sha256"]
    step = shell.newest().checkpoints / "step-30"
    os.truncate(next(step.glob("layer-0002-*")), 10)
    said = both(shell, "checkpoint", "verify", "@30", expect=107)
    assert "is damaged" in said and "has 10 bytes instead of" in said
    assert "@30 is damaged: " in both(shell, "resume", "@30", expect=107)
    said = both(shell, "resume")
    assert "@30 is damaged: " in said and re.search(r"goes on from .*@20, with differences:\n  partition is", said)
    assert weights(shell) == whole["result"]["weights_sha256"]


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["resume", "{run}"], 107, "has all of its 30 steps behind it"),
        (["resume", "{run}@20", "optimizer.name=sgd"], 107, "has the state of adamw, which sgd cannot go on with"),
        (["resume", "{run}@20", "hidden_size=64"], 107, "model.hidden_size is 64, was 32"),
        (["resume", "{run}@7"], 107, "has no checkpoint of step 7"),
        (["resume", "{run}@x"], 2, "a step is a number"),
        (["resume", "nobody"], 102, "no run nobody"),
        (["checkpoint", "export", "{run}", "--to", "."], 2, "is a folder"),
        (["checkpoint", "export", "{run}", "--to", "no/where"], 107, "No such file or directory"),
        (["launch", "--from", "{run}@x"], 2, "a step is a number"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    arguments: list[str], code: int, words: str, shell: Shell, whole: dict[str, Any]
) -> None:
    runs = len(list(shell.home.glob("runs/*")))
    assert words in both(shell, *(word.format(run=whole["run"]) for word in arguments), expect=code)
    assert len(list(shell.home.glob("runs/*"))) == runs


def test_a_killed_rank_costs_at_most_the_steps_since_the_last_checkpoint(shell: Shell, whole: dict[str, Any]) -> None:
    """hostd starts a second attempt, which goes on by itself; no step counts twice."""
    command = shell.start("launch", "run.steps=30", "run.max_restarts=2", "data.minibatch_size=4", "-o", "json")
    before = set(shell.home.glob("runs/*"))
    files = RunFiles(wait_for(lambda: set(shell.home.glob("runs/*")) - before).pop())
    wait_for(lambda: (files.checkpoints / "step-10").exists())
    starts = [event for event in read_events(files.events) if event["event"] == "rank-start"]
    os.kill(next(event["pid"] for event in starts if event["rank"] == 1), signal.SIGKILL)
    out, err = command.communicate(timeout=60)
    assert command.returncode == 0, err
    assert json.loads(out)["result"]["weights_sha256"] == whole["result"]["weights_sha256"]
    assert json.loads(out)["attempt"] == 2
    resumed = [event for event in read_events(files.events) if event["event"] == "resumed"]
    assert [event["attempt"] for event in resumed] == [2]
    lines = [json.loads(line)["step"] for line in files.metrics(0).read_text().splitlines()]
    assert lines[-1] == 30 and set(lines) == set(range(1, 31))


def test_a_curve_takes_back_what_was_done_again() -> None:
    curve, straight = Curve(limit=8), Curve(limit=8)
    for step in [*range(1, 7), *range(4, 9)]:
        curve.add(step, float(step))
    for step in range(1, 9):
        straight.add(step, float(step))
    assert curve.points() == straight.points()


def test_a_rank_that_goes_on_counts_each_step_once(tmp_path: Path) -> None:
    from tests import runs

    files = runs.make_run(tmp_path)
    runs.add_steps(files, 1, 9)
    with files.metrics(1).open("a") as file:
        file.write('{"step": 10, "ti')
    metrics = MetricsFile(files.metrics(1), 20, 6)
    assert (metrics.totals.steps, metrics.totals.losses[-1]) == (6, pytest.approx(6.4))
    for step in range(7, 13):
        metrics.write(runs.step_metrics(1, step, 1))
    metrics.close()
    meter = Meter(files, runs.job())
    meter.update()
    assert [step for step, _ in meter.progress().losses] == list(range(1, 13))


def test_paths_typed_for_a_run_still_mean_the_same_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    for path in (tmp_path / "beside.txt", elsewhere / "typed.txt"):
        path.touch()
    files = RunFiles(home)
    files.cluster.write_text("machines: [cpu]\ndata: {source: text, path: beside.txt}\n")
    request.keep(files, tmp_path / "cluster.yml", [])
    monkeypatch.chdir(elsewhere)
    assert request.load(files, ["lr=0.5"])[0].data.path == str(tmp_path / "beside.txt")  # type: ignore[union-attr]
    spec, every, _ = request.load(files, ["data.path=typed.txt"])
    assert spec.data.path == str(elsewhere / "typed.txt")  # type: ignore[union-attr]
    assert every == [f"data.path={elsewhere / 'typed.txt'}"]
