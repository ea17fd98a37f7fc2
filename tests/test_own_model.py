"""The examples of docs/your-own-model.md run as they stand there; and what goes wrong in a user's model is told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests import harness, reference
from tests.rig import SLOW
from vpipe_cli import config, outline
from vpipe_cli.app import app
from worker import data, models
from worker.errors import DataError, ModelError, UsageError
from worker.flow import trace
from worker.planner import make_plan
from worker.spec.cluster import ClusterSpec

DOCUMENT = (Path(__file__).parent.parent / "docs" / "your-own-model.md").read_text()
TEXT = {"source": "synthetic", "sequence_length": 12, "vocab_size": 300, "minibatch_size": 3}


def examples(folder: Path) -> None:
    """Write every marked example to a file of its name."""
    for name, text in re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", DOCUMENT, re.DOTALL):
        (folder / name).write_text(text)


def spec_of(folder: Path, entry: str, takes: str | None = None, **pipeline: Any) -> ClusterSpec:
    return ClusterSpec.model_validate(
        {
            "machines": ["cpu"],
            "model": {"entry": entry, "code": str(folder), "takes": takes},
            "data": TEXT,
            "pipeline": {"sync_mode": "bsp", "minibatches_per_step": 3, **pipeline},
            "optimizer": {"lr": 1e-2},
            "run": {"steps": 3, "seed": 3, "stall_timeout": 20.0},
        }
    )


@pytest.fixture(autouse=True)
def own_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test imports from its folder is forgotten after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("small", "skip", "two", "mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(
    ("name", "takes", "layers"), [("small", None, 6), ("skip", None, 4), ("two", "translation", 3)]
)
def test_the_examples_train_in_a_pipeline_as_in_one_process(
    name: str, takes: str | None, layers: int, tmp_path: Path
) -> None:
    examples(tmp_path)
    spec = spec_of(tmp_path, f"{name}:build", takes)
    model, source = models.build_model(spec), data.open_source(spec, tmp_path)
    assert len(model.layers) == layers
    job = harness.job_of(spec, [layers - 2, 1, 1], recompute_ratio=1.0)
    weights = harness.train(job, model, source, tmp_path)
    expected = reference.bsp(spec, model, source, job.plan)
    assert weights.keys() == expected.keys()
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []


def test_the_small_example_is_planned_and_launched(tmp_path: Path) -> None:
    """By the command itself, from another folder, on text, with partition auto."""
    examples(tmp_path)
    corpus = tmp_path / "text"
    corpus.write_bytes(Path(torch.__file__).read_bytes()[:60_000])
    given = ["run.steps=12", "data.source=text", f"data.path={corpus}", "vocab_size=400"]
    command = [sys.executable, "-m", "vpipe_cli.app", "launch", str(tmp_path / "small.yml"), *given]
    environment = {**os.environ, "VPIPE_HOME": str(tmp_path / "home"), "VPIPE_CACHE": str(tmp_path / "cache")}
    ended = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "succeeded: 12 steps" in ended.stdout


@pytest.mark.parametrize(
    ("name", "layers"), [pytest.param("small", 6, marks=SLOW), ("skip", 4), pytest.param("two", 3, marks=SLOW)]
)
def test_the_examples_are_profiled_and_planned(
    name: str, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the document says it, one command after the other; the plan is made from what was measured."""
    examples(tmp_path)
    (tmp_path / "text").write_bytes(Path(torch.__file__).read_bytes()[:60_000])
    given = ["data.source=text", f"data.path={tmp_path / 'text'}", "vocab_size=400"] if name != "two" else []
    for key, folder in (("VPIPE_HOME", "home"), ("VPIPE_CACHE", "cache")):
        monkeypatch.setenv(key, str(tmp_path / folder))
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "vpipe_cli.app", "profile", f"{name}.yml", *given, "--repeats", "1", "-o", "json"]
    profiled = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert profiled.returncode == 0, profiled.stderr
    assert len(json.loads(profiled.stdout)["layers"]) == layers
    planned = CliRunner().invoke(app, ["plan", f"{name}.yml", *given, "-o", "json"])
    assert planned.exit_code == 0, planned.output
    plan = json.loads(planned.stdout)
    assert sum(plan["partition"]) == layers and plan["predicted"]["step_seconds"] > 0


def test_layers_of_a_users_model_are_balanced(tmp_path: Path) -> None:
    examples(tmp_path)
    (tmp_path / "c.yml").write_text((tmp_path / "small.yml").read_text())
    spec = config.load(tmp_path / "c.yml")
    flops = outline.layer_flops(spec)
    assert flops is not None and len(flops) == 6 and flops[1] == flops[4] > flops[0]
    plan = make_plan(spec, 2, flops)
    assert sum(plan.partition) == 6 and "auto" in plan.reason
    wrong = config.load(tmp_path / "c.yml", ["pipeline.partition=[2, 2]"])
    with pytest.raises(UsageError, match="adds up to 4 but the model has 6 layers"):
        make_plan(wrong, 2, flops)


HEAD = "import torch\nfrom torch import nn\nfrom worker.models.base import Layer, Model\n"
BAD = {
    "no such function": ("", "entry mine:build: mine has no build"),
    "no function": ("build = 5", "entry mine:build: build is a int, not a function"),
    "raises": (
        "def build():\n    raise ValueError('too bad')",
        "entry mine:build raises ValueError: too bad ({file}:5)",
    ),
    "raises on import": (
        "1 / 0",
        "entry mine:build: importing mine fails: ZeroDivisionError: division by zero ({file}:4)",
    ),
    "takes something": (
        "def build(width): pass",
        "entry mine:build raises TypeError: build() missing 1 required positional argument: 'width'",
    ),
    "returns nothing": ("def build(): pass", "model.entry mine:build returns nothing"),
    "returns a module": ("def build(): return nn.Linear(2, 2)", "model.entry mine:build returns a Linear"),
    "returns strings": ("def build(): return ['a', 'b']", "model.entry mine:build returns a list of str"),
    "returns an empty list": ("def build(): return []", "model.entry mine:build returns a list of nothing"),
    "shares a module": (
        "def build():\n    same = nn.Linear(8, 8)\n    return nn.Sequential(nn.Embedding(300, 8), same, same)",
        "model.entry mine:build: layers 1 and 2 share 1.weight",
    ),
    "layers share a module": (
        "def build():\n    same = nn.Linear(8, 8)\n"
        "    return [Layer('e', lambda: nn.Embedding(300, 8), ('input_ids',), ('h',)),"
        " Layer('a', lambda: same, ('h',), ('h',)), Layer('b', lambda: same, ('h', ), ('loss',))]",
        "a.weight and b.weight are one parameter",
    ),
    "builds nothing": (
        "def build(): return [Layer('e', lambda: None, ('input_ids',), ('h',))]",
        "layer e cannot be built: ModelError: build of layer e returns nothing, not a module",
    ),
    "takes what is not there": (
        "def build(): return [Layer('e', lambda: nn.Embedding(300, 8), ('pixels',), ('h',))]",
        "layer e takes pixels, which no earlier layer and no input of the data gives",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_model_that_goes_wrong_says_where(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(HEAD + text)
    spec = spec_of(tmp_path, "mine:build")
    with pytest.raises(ModelError) as caught:
        trace(models.build_model(spec), data.signature(spec))
    assert caught.value.message == message.format(file=file)


def test_a_module_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="entry mine:build: there is no module mine"):
        models.build_model(spec_of(tmp_path, "mine:build"))


def test_what_goes_wrong_is_said_before_anything_starts(tmp_path: Path) -> None:
    """The planner's process tells it, with the line of the user's file."""
    (tmp_path / "mine.py").write_text("def build():\n    print('noise')\n    raise ValueError('too bad')\n")
    (tmp_path / "c.yml").write_text("machines: [cpu*2]\nmodel: {entry: 'mine:build'}\n")
    with pytest.raises(UsageError, match=r"raises ValueError: too bad \(.*mine.py:3\)"):
        outline.layer_flops(config.load(tmp_path / "c.yml"))


def test_data_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tests import toy\n\ndef open(minibatch_size): return toy.Data()\n\ndef nothing(): pass\n"
    )
    given = {"machines": ["cpu"], "data": {"entry": "mine:open", "code": str(tmp_path), "minibatch_size": 3}}
    spec = ClusterSpec.model_validate({**given, "model": {"entry": "mine:none"}})
    assert set(data.open_source(spec, tmp_path).signature.inputs) == {"ids", "mask"}
    bad = ClusterSpec.model_validate({**given, "data": {"entry": "mine:nothing"}, "model": {"entry": "mine:none"}})
    with pytest.raises(DataError, match="returns a NoneType without signature"):
        data.signature(bad)
