"""Evaluation in a pipeline: the numbers of one process to the last bit, and training goes on as if nothing had been."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests import harness, ranks, reference
from tests.test_models import MODELS, cut, spec_of
from vpipe_cli.app import app
from vpipe_cli.runs import evaluations
from worker import data, models
from worker.build import Builder
from worker.data.base import Source
from worker.errors import CheckpointError
from worker.evaluate import Evaluator
from worker.feed import Feeder
from worker.models.base import Model
from worker.rendezvous import Rendezvous
from worker.schedule.job import minibatches_per_step
from worker.spec.cluster import ClusterSpec
from worker.spec.files import RunFiles
from worker.spec.job import Job
from worker.spec.records import Evaluation, StepMetrics
from worker.trace import Stopwatch


def evaluated(spec: ClusterSpec, every: int = 2, minibatches: int = 5) -> ClusterSpec:
    section = spec.evaluate.model_copy(update={"every_steps": every, "minibatches": minibatches})
    return spec.model_copy(update={"evaluate": section})


def one_process(weights: dict[str, torch.Tensor], spec: ClusterSpec, model: Model, source: Source) -> Evaluation:
    """The same written down plainly."""
    whole = reference.Whole(model, source, spec.run.seed, "fp32")
    whole.set(weights)
    for module in whole.modules:
        module.eval()
    sums, counts, hits = [0.0] * len(model.losses), [0.0] * len(model.losses), [0.0, 0.0]
    for index in range(spec.evaluate.minibatches):
        minibatch = source.minibatch(index)
        values = {**minibatch.inputs, **minibatch.targets}
        with torch.no_grad():
            for layer, module in zip(model.layers, whole.modules, strict=True):
                given = [values[name] for name in layer.inputs]
                outputs = module(*given)
                values.update(zip(layer.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
            scores = whole.modules[-1].scores(*given).tolist()  # type: ignore[operator]
        sums = [a + b for a, b in zip(sums, values["loss"].tolist(), strict=True)]
        counts = [a + b for a, b in zip(counts, minibatch.counts, strict=True)]
        hits = [a + b for a, b in zip(hits, scores, strict=True)]
    losses = [total / count for total, count in zip(sums, counts, strict=True)]
    return Evaluation(
        step=0,
        minibatches=spec.evaluate.minibatches,
        targets=int(counts[0]),
        loss=losses[0],
        losses=dict(zip(model.losses, losses, strict=True)),
        perplexity=math.exp(losses[0]) if spec.task != "images" else None,
        accuracy=hits[0] / counts[0],
        top5=hits[1] / counts[0],
    )


def train(job: Job, model: Model, source: Source, other: Source, folder: Path) -> tuple[Any, list[Evaluation]]:
    """Train with evaluations: the weights at the end, and what rank 0 found."""
    outcomes = ranks.run(len(job.ranks), folder, partial(_rank, job, model, source, other, folder))
    weights = {name: weight for outcome in outcomes for name, weight in outcome[0].items()}
    return weights, outcomes[0][1]


def _rank(job: Job, model: Model, source: Source, other: Source, folder: Path, rank: int) -> tuple[Any, Any]:
    ranks.join(rank, len(job.ranks), folder, 20.0)
    import torch.distributed as dist

    waiting, is_first = Stopwatch(), job.ranks[rank].stage == 0
    builder = Builder(job, model, source.signature, rank, torch.device("cpu"))
    feed = Feeder(source, minibatches_per_step(job.spec), builder.device, waiting) if is_first else None
    found: list[Evaluation] = []

    def report(step: StepMetrics) -> None:
        if evaluator.is_due(step.step) and (result := evaluator.run(step.step)):
            found.append(result)

    executor = builder.executor(feed, waiting, report)
    store = dist.distributed_c10d._get_default_store()
    rendezvous = Rendezvous(store, rank, len(job.ranks), 20.0)
    evaluator = Evaluator(builder, executor, other if is_first else None, rendezvous)
    executor.run(builder.actions())
    dist.barrier()
    return {name: parameter.detach().clone() for name, parameter in executor.parameters().items()}, found


@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
@pytest.mark.parametrize(
    ("name", "stages", "replicas"),
    [("gpt2", 3, None), ("gpt2", 2, [2, 2]), ("bert-nsp", 2, None), ("resnet50", 1, None)],
)
def test_equals_one_process(name: str, stages: int, replicas: list[int] | None, sync_mode: str, tmp_path: Path) -> None:
    spec = evaluated(spec_of(name, sync_mode, steps=4))
    model, source = models.build_model(spec), data.open_source(spec, tmp_path)
    other = data.open_evaluation(spec, tmp_path)
    job = harness.job_of(spec, cut(len(model.layers), stages), 0.0, replicas)
    weights, found = train(job, model, source, other, tmp_path)
    assert [each.step for each in found] == [2, 4]
    if name != "resnet50":  # its running statistics are no parameters
        expected = one_process(weights, spec, model, other).model_copy(update={"step": 4})
        assert found[-1] == expected
    assert found[-1].accuracy is not None and 0 <= found[-1].accuracy <= (found[-1].top5 or 0) <= 1


@pytest.mark.parametrize("replicas", [None, [2, 2]], ids=str)
def test_under_bsp_training_is_as_without(replicas: list[int] | None, tmp_path: Path) -> None:
    spec = evaluated(spec_of("gpt2", "bsp", steps=3), every=1)
    model, source = models.build_model(spec), data.open_source(spec, tmp_path)
    job = harness.job_of(spec, [3, 3], 0.5, replicas)
    weights, found = train(job, model, source, data.open_evaluation(spec, tmp_path), tmp_path)
    expected = reference.bsp(spec, model, source, job.plan)
    assert len(found) == 3
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []


def test_held_out_text_has_the_tokens_of_the_training_text(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("the cat sees a house and the house sees a cat " * 40)
    (tmp_path / "other.txt").write_text("a house and a cat and the cat " * 20)
    given: dict[str, Any] = {"sequence_length": 8, "vocab_size": 300, "minibatch_size": 2}
    spec = ClusterSpec.model_validate(
        {
            "machines": ["cpu"],
            "model": MODELS["gpt2"][0],
            "data": {"source": "text", "path": str(tmp_path / "train.txt"), **given},
            "evaluate": {"every_steps": 1, "held_out": str(tmp_path / "other.txt")},
        }
    )
    for source in (data.open_source(spec, tmp_path / "cache"), data.open_evaluation(spec, tmp_path / "cache")):
        assert source.minibatch(0).inputs["input_ids"].shape == (2, 8)
    tokenizers = [path.read_text() for path in sorted((tmp_path / "cache").glob("*/tokenizer.json"))]
    assert len(tokenizers) == 2 and tokenizers[0] == tokenizers[1]


class Shell:
    """The command in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.run = folder, folder / "home", Path()

    def vpipe(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "vpipe_cli.app", *arguments]
        environment = {**os.environ, "VPIPE_HOME": str(self.home), "VPIPE_CACHE": str(self.folder / "cache")}
        ended = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=170)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """After a run of two stages that was saved and measured at its end."""
    made = Shell(tmp_path_factory.mktemp("shell"))
    corpus = made.folder / "text"
    corpus.write_bytes(Path(torch.__file__).read_bytes()[:60_000])
    (made.folder / "c.yml").write_text(
        "machines: [cpu*2]\nmodel: {name: gpt2, hidden_size: 16, num_layers: 2, num_heads: 2}\n"
        f"data: {{source: text, path: {corpus}, sequence_length: 16, vocab_size: 300}}\n"
        "run: {steps: 4}\nevaluate: {every_steps: 4, minibatches: 3}\n"
    )
    made.vpipe("launch", "c.yml")
    (made.run,) = (made.home / "runs").iterdir()
    return made


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_command_measures_a_checkpoint(elsewhere: bool, shell: Shell) -> None:
    """What a run finds at its end is what `vpipe eval` finds later, on other stages, of a copy without its run too."""
    folder = shell.run
    (found,) = evaluations.all_of(RunFiles(folder))
    asked = folder.name
    if elsewhere:
        asked = "elsewhere/kept"
        shutil.copytree(folder / "checkpoints" / "step-4", shell.folder / asked)
    later = json.loads(shell.vpipe("eval", asked, "machines=[cpu]", "-o", "json"))
    assert later["of"] == asked and later["evaluation"] == found.model_dump()


def test_what_is_no_checkpoint_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    said = {asked: CliRunner().invoke(app, ["eval", asked]) for asked in ("no/where", "./empty", "broken")}
    assert [type(result.exception) for result in said.values()] == [CheckpointError] * 3
    assert [str(result.exception).splitlines()[0] for result in said.values()] == [
        "no/where is no folder",
        f"{tmp_path}/empty/manifest.json cannot be read: No such file or directory",
        f"{tmp_path}/broken/manifest.json is no manifest",
    ]
