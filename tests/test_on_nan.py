"""A loss that is not finite: where it came from is said, and the run ends or goes on without that update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import harness, toy
from worker.data.base import Minibatch
from worker.errors import NonFiniteLoss, PeerLost
from worker.models.base import Model
from worker.spec.cluster import ClusterSpec, OptimizerSpec, PipelineSpec, RunSpec

BAD = 7


class Divides(toy.Block):
    """A layer that cannot do without a token."""

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return super().forward(hidden, mask) / mask.any()


class Data(toy.Data):
    """Minibatch 7 has no token."""

    def minibatch(self, number: int) -> Minibatch:
        made = super().minibatch(number)
        return replace(made, inputs={**made.inputs, "mask": made.inputs["mask"] & (number != BAD)})


def model(block: type[toy.Block] = Divides) -> Model:
    whole = toy.model()
    layers = [replace(each, build=block) if each.name == "block.1" else each for each in whole.layers]
    return replace(whole, layers=tuple(layers))


def spec(sync_mode: str, on_nan: str, steps: int) -> ClusterSpec:
    per_step = 4 if sync_mode == "bsp" else None
    return ClusterSpec(
        machines=["cpu"],
        pipeline=PipelineSpec(sync_mode=sync_mode, minibatches_per_step=per_step),  # type: ignore[arg-type]
        optimizer=OptimizerSpec(lr=1e-2, clip_grad_norm=0.5),
        run=RunSpec(steps=steps, seed=3, stall_timeout=20.0, on_nan=on_nan),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "partition, words",
    [([2, 4], "stage 1: .* layer block.1 made it"), ([3, 3], "stage 1: .* hidden came so from an earlier stage")],
)
def test_stage_layer_and_minibatch_are_named(partition: list[int], words: str, tmp_path: Path) -> None:
    job = harness.job_of(spec("asp", "stop", 12), partition)
    first, last = harness.failures(job, model(), Data(), tmp_path)
    assert isinstance(last, NonFiniteLoss) and isinstance(first, PeerLost)
    assert last.message.startswith("stage 1: loss nan at minibatch 7, step 8: ")
    with pytest.raises(NonFiniteLoss, match=words):
        raise last


class Roots(toy.Block):
    """A layer that has a value without a token, but no gradient for what it was given."""

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return super().forward(hidden, mask) + (hidden * mask.any()).abs().sqrt()


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize(
    ("sync_mode", "partition", "words"),
    [
        ("asp", [2, 4], r"stage 0: the gradient of block\.0\.norm\.bias is not finite after minibatch 7, step 8"),
        ("bsp", [2, 4], r"stage 0: .* block\.0\.norm\.bias is not finite after minibatches 4 to 7, step 2"),
        ("bsp", [1, 1, 2, 2], r"stage 1: .* block\.0\.norm\.bias"),
    ],
)
def test_a_gradient_that_is_not_finite_is_named_in_the_last_update_too(
    sync_mode: str, partition: list[int], words: str, clip: float | None, tmp_path: Path
) -> None:
    whole = spec(sync_mode, "stop", 8 if sync_mode == "asp" else 2)
    whole = whole.model_copy(update={"optimizer": OptimizerSpec(clip_grad_norm=clip)})
    job = harness.job_of(whole, partition)
    errors = harness.failures(job, model(Roots), Data(), tmp_path)
    with pytest.raises(NonFiniteLoss, match=words):
        raise next(error for error in reversed(errors) if isinstance(error, NonFiniteLoss))


@pytest.mark.parametrize("sync_mode", ["bsp", "asp"])
def test_the_update_is_left_out_on_any_number_of_stages(sync_mode: str, tmp_path: Path) -> None:
    """BSP leaves out step 2, the one with minibatch 7, everywhere; ASP that minibatch in every stage."""
    ends = []
    for partition in ([6], [2, 3, 1]) if sync_mode == "bsp" else ([2, 3, 1],):
        folder = tmp_path / str(len(partition))
        folder.mkdir()
        job = harness.job_of(spec(sync_mode, "skip", 5 if sync_mode == "bsp" else 12), partition, 0.5)
        ends.append(harness.train(job, model(), Data(), folder))
    assert all(bool(torch.isfinite(value).all()) for end in ends for value in end.values())
    assert all(torch.equal(ends[0][name], ends[-1][name]) for name in ends[0])
    few = harness.job_of(spec(sync_mode, "skip", 1), [6])
    few_folder = tmp_path / "few"
    few_folder.mkdir()
    assert not torch.equal(
        harness.train(few, model(), Data(), few_folder)["head.decoder.bias"], ends[0]["head.decoder.bias"]
    )
