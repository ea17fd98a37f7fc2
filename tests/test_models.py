"""Every model in a pipeline equals one process, bit for bit; layers are as many as the spec says; losses fall."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import harness, ranks, reference
from worker import data, models
from worker.executor import Executor
from worker.flow import trace
from worker.planner.estimate import layer_flops
from worker.recovery.snapshot import buffers
from worker.spec.cluster import ClusterSpec

TEXT = {"source": "synthetic", "sequence_length": 12, "vocab_size": 300, "minibatch_size": 3}
PICTURES = {"source": "synthetic", "image_size": 32, "classes": 3, "minibatch_size": 4}
SMALL = {"hidden_size": 16, "num_layers": 2}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bert-nsp": ({"name": "bert-nsp", **SMALL}, TEXT),
    "gpt2": ({"name": "gpt2", **SMALL}, TEXT),
    "transformer": ({"name": "transformer", **SMALL}, TEXT),
    "gnmt": ({"name": "gnmt", **SMALL}, TEXT),
    "resnet50": ({"name": "resnet50", "width": 4, "blocks": [1, 2]}, PICTURES),
    "vgg16": ({"name": "vgg16", "width": 2, "hidden_size": 16}, PICTURES),
}


def spec_of(name: str, sync_mode: str = "bsp", steps: int = 4) -> ClusterSpec:
    model, given = MODELS[name]
    return ClusterSpec.model_validate(
        {
            "machines": ["cpu"],
            "model": model,
            "data": given,
            "pipeline": {"sync_mode": sync_mode, "minibatches_per_step": 4 if sync_mode == "bsp" else None},
            "optimizer": {"lr": 1e-2, "clip_grad_norm": 1.0},
            "run": {"steps": steps, "seed": 3, "stall_timeout": 20.0},
        }
    )


def cut(layers: int, stages: int) -> list[int]:
    """Early stages a layer longer."""
    return [layers // stages + (stage < layers % stages) for stage in range(stages)]


@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_equals_one_process(name: str, stages: int, sync_mode: str, tmp_path: Path) -> None:
    spec = spec_of(name, sync_mode, steps=6 if sync_mode == "asp" else 2)
    model, source = models.build_model(spec), data.open_source(spec, tmp_path)
    job = harness.job_of(spec, cut(len(model.layers), stages), recompute_ratio=0.5 if stages == 3 else 0.0)
    weights = harness.train(job, model, source, tmp_path)
    expected = {"asp": reference.asp, "bsp": reference.bsp}[sync_mode](spec, model, source, job.plan)
    assert weights.keys() == expected.keys()
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []


@pytest.mark.parametrize("name", MODELS)
def test_as_many_layers_as_the_spec_counts(name: str) -> None:
    spec = spec_of(name)
    model, flops = models.build_model(spec), layer_flops(spec)
    assert flops is not None
    assert len(model.layers) == spec.model.layer_count == len(flops)
    assert min(flops) > 0


@pytest.mark.parametrize(("name", "count"), [("resnet50", 25_557_032), ("vgg16", 138_357_544)])
def test_names_and_counts_are_those_of_torchvision(name: str, count: int) -> None:
    spec = ClusterSpec.model_validate(
        {"machines": ["cpu"], "model": {"name": name}, "data": {**PICTURES, "image_size": 224, "classes": 1000}}
    )
    flow = trace(models.build_model(spec), data.signature(spec))
    shapes = {name: flow.spec(name).shape for name in flow.parameters}
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == count
    if name == "resnet50":
        assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
        assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
        assert {"conv1.weight", "bn1.bias", "layer3.5.bn2.weight", "fc.weight"} <= shapes.keys()
    else:
        assert [n for n in shapes if n.endswith("weight")] == [
            *(f"features.{place}.weight" for place in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
            *(f"classifier.{place}.weight" for place in (0, 3, 6)),
        ]


def give_buffers() -> None:
    """From now on a rank of this process brings its buffers home in place of its parameters."""

    def all_buffers(self: Executor) -> dict[str, Tensor]:
        stages = [runtime.stage for runtime in self.stages.values()]
        layers = [each for stage in stages for each in zip(stage.layers, stage.modules, strict=True)]
        return {name: value for layer, module in layers for name, value in buffers(layer.name, module)}

    Executor.parameters = all_buffers  # type: ignore[method-assign]


def test_a_norm_counts_each_minibatch_once_though_it_is_recomputed(tmp_path: Path) -> None:
    """Running statistics are those of one process, with and without recomputation."""
    spec = spec_of("resnet50", steps=2)
    model, source = models.build_model(spec), data.open_source(spec, tmp_path)
    kept = []
    for ratio in (0.0, 1.0):
        (tmp_path / str(ratio)).mkdir()
        job = harness.job_of(spec, [6], recompute_ratio=ratio)
        found = harness.train(job, model, source, tmp_path / str(ratio), give_buffers)
        assert int(found["bn1.num_batches_tracked"]) == 8
        kept.append(found)
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
def test_a_norm_in_a_pipeline_has_the_statistics_of_one_process(
    sync_mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("resnet50", sync_mode, steps=6 if sync_mode == "asp" else 2)
    model, source = models.build_model(spec), data.open_source(spec, tmp_path)
    job = harness.job_of(spec, [2, 2, 2], recompute_ratio=1.0)
    found = harness.train(job, model, source, tmp_path, give_buffers)
    kept: list[reference.Whole] = []

    class Kept(reference.Whole):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            kept.append(self)

    monkeypatch.setattr(reference, "Whole", Kept)
    {"asp": reference.asp, "bsp": reference.bsp}[sync_mode](spec, model, source, job.plan)
    layers = zip(model.layers, kept[0].modules, strict=True)
    expected = {name: value for layer, module in layers for name, value in buffers(layer.name, module)}
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_replicas_keep_statistics_of_their_own_minibatches(tmp_path: Path) -> None:
    spec = spec_of("resnet50", steps=2)
    model, source = models.build_model(spec), data.open_source(spec, tmp_path)
    job = harness.job_of(spec, [3, 3], replicas=[2, 1])
    one, other, last = ranks.run(3, tmp_path, partial(harness._rank, job, model, source, tmp_path, give_buffers))
    assert [int(each["bn1.num_batches_tracked"]) for each in (one, other)] == [4, 4]
    assert not torch.equal(one["bn1.running_mean"], other["bn1.running_mean"])
    assert {int(value) for name, value in last.items() if name.endswith("num_batches_tracked")} == {8}


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_falls(name: str, tmp_path: Path) -> None:
    """In one process: a pipeline computes the same."""
    spec = spec_of(name, steps=30)
    spec = spec.model_copy(update={"pipeline": spec.pipeline.model_copy(update={"minibatches_per_step": 1})})
    model, source = models.build_model(spec), data.open_source(spec, tmp_path)
    whole = reference.Whole(model, source, 1, "fp32")
    optimizer = torch.optim.Adam(whole.owned().values(), lr=1e-2)
    losses = []
    for step in range(spec.run.steps):
        whole.set({name: parameter.detach().clone() for name, parameter in whole.owned().items()})
        loss = whole.loss(source, step % 2, torch.tensor([1 / n for n in source.minibatch(step % 2).counts]))
        loss.backward()
        gradients = whole.with_borrowed(whole.take_gradients())
        for parameter_name, parameter in whole.owned().items():
            parameter.grad = gradients.get(parameter_name)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4]), losses
