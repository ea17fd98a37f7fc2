"""Models and data that go wrong while ranks train: the rank that meets it says what, where and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import harness, reference, toy
from worker.data.base import Minibatch
from worker.errors import DataError, ModelError, NonFiniteLoss, PeerLost, RankError
from worker.models.base import Layer, Model
from worker.spec.cluster import ClusterSpec, OptimizerSpec, PipelineSpec, RunSpec
from worker.spec.job import Job

ODD = 4
"""The minibatch that is not as the others are."""


def job(partition: list[int], sync_mode: str = "asp", replicas: list[int] | None = None, timeout: float = 10.0) -> Job:
    spec = ClusterSpec(
        machines=["cpu"],
        pipeline=PipelineSpec(sync_mode=sync_mode, minibatches_per_step=3 if sync_mode == "bsp" else None),
        optimizer=OptimizerSpec(lr=1e-2, clip_grad_norm=0.5),
        run=RunSpec(steps=9 if sync_mode == "asp" else 3, seed=3, stall_timeout=timeout),
    )
    return harness.job_of(spec, partition, replicas=replicas)


class Odd(nn.Module):
    """Passes on what it gets, but does something else to minibatch ODD, known by its first word."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, hidden: Tensor, ids: Tensor) -> Any:
        is_odd = not ids.is_meta and int(ids[0, 0]) == toy.WORDS
        return self.change(hidden) if is_odd else hidden * 1


def odd_model(change: Callable[[Tensor], Any]) -> Model:
    """embed, odd, block, block, head."""
    plain = toy.model(blocks=2)
    odd = Layer("odd", lambda: Odd(change), ("hidden", "ids"), ("hidden",))
    embed = replace(plain.layers[0], build=Embed)
    return Model((embed, odd, *plain.layers[1:]), tied=plain.tied)


class Embed(toy.Embed):
    """Knows one more word."""

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(ids % toy.WORDS)


class Marked(toy.Data):
    """Minibatch ODD begins with a word of its own; or is what ``change`` makes of it."""

    def __init__(self, change: Callable[[Minibatch], Any] = lambda minibatch: minibatch) -> None:
        super().__init__()
        self.change = change

    def minibatch(self, number: int) -> Minibatch:
        minibatch = super().minibatch(number)
        if number != ODD:
            return minibatch
        minibatch.inputs["ids"][0, 0] = toy.WORDS
        return self.change(minibatch)


def only(failures: list[BaseException], rank: int, kind: type[RankError]) -> RankError:
    """The error of ``rank``, which must be of ``kind`` and the only one that is no consequence."""
    assert [isinstance(error, PeerLost) for error in failures] == [other != rank for other in range(len(failures))]
    assert type(failures[rank]) is kind
    return failures[rank]  # type: ignore[return-value]


WRONG = {
    "shape": (lambda h: h[:, :5], "layer odd gives hidden of minibatch 4 as float32 (3, 5, 12); "),
    "dtype": (lambda h: h.double(), "layer odd gives hidden of minibatch 4 as float64 (3, 7, 12); "),
    "None": (lambda h: None, "layer odd returns (NoneType) for its outputs (hidden)"),
    "list": (lambda h: [h], "layer odd returns (list) for its outputs (hidden)"),
    "two": (lambda h: (h, h), "layer odd returns (Tensor, Tensor) for its outputs (hidden)"),
}


@pytest.mark.parametrize("partition", [[2, 3], [1, 1, 3]], ids=str)
@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_an_output_that_is_not_as_foretold_never_leaves(
    change: Callable[[Tensor], Any], message: str, partition: list[int], tmp_path: Path
) -> None:
    failures = harness.failures(job(partition), odd_model(change), Marked(), tmp_path)
    assert only(failures, len(partition) - 2, ModelError).message.startswith(message)


@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
@pytest.mark.parametrize("replicas", [[1, 1], [2, 1]], ids=str)
def test_a_loss_that_is_no_number_names_stage_and_minibatch(
    sync_mode: str, replicas: list[int], tmp_path: Path
) -> None:
    model = odd_model(lambda hidden: hidden * float("nan"))
    model = Model(model.layers)
    failures = harness.failures(job([2, 3], sync_mode, replicas), model, Marked(), tmp_path)
    step = 5 if sync_mode == "asp" else 2
    message = only(failures, sum(replicas) - 1, NonFiniteLoss).message
    assert message == f"stage 1: loss nan at minibatch 4, step {step}: hidden came so from an earlier stage"


def with_head(forward: Callable[..., Any], losses: tuple[str, ...] = ("loss",)) -> Model:
    """The toy with another loss."""

    class Head(toy.Head):
        def forward(self, hidden: Tensor, skip: Tensor, labels: Tensor) -> Any:
            return forward(self.decoder(hidden + skip), labels)

    plain = toy.model(blocks=2, tied=False)
    return Model((*plain.layers[:-1], replace(plain.layers[-1], build=Head)), losses)


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


BAD_LOSS = {
    "scalar": (summed, "layer head gives a loss of float32 (), not float32 (1,)"),
    "per word": (lambda x, y: x.sum(-1), "layer head gives a loss of float32 (3, 7), not float32 (1,)"),
    "double": (lambda x, y: summed(x, y)[None].double(), "layer head gives a loss of float64 (1,), not float32 (1,)"),
    "detached": (
        lambda x, y: summed(x, y)[None].detach(),
        "the loss of layer head depends on no parameter, in its stage or before it",
    ),
    "a list": (lambda x, y: [summed(x, y)], "layer head returns (list) for its outputs (loss)"),
}


@pytest.mark.parametrize(("forward", "message"), BAD_LOSS.values(), ids=BAD_LOSS)
def test_a_loss_that_cannot_be_trained_on_is_refused(forward: Callable[..., Any], message: str, tmp_path: Path) -> None:
    failures = harness.failures(job([2, 2]), with_head(forward), toy.Data(), tmp_path)
    assert only(failures, 1, ModelError).message == message


def test_data_that_count_too_few_targets_are_refused(tmp_path: Path) -> None:
    model = with_head(lambda x, y: torch.stack([summed(x, y)] * 2), ("loss", "again"))
    failures = harness.failures(job([2, 2]), model, toy.Data(), tmp_path)
    message = "minibatch 0 counts the targets of 1 losses; the model has 2"
    assert only(failures, 0, DataError).message == message


class Round(nn.Module):
    """Gives integers: no gradient comes through."""

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden * 10).long().clamp(0, toy.WORDS - 1)


class Again(nn.Module):
    """Takes integers, and has parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(toy.WORDS, toy.WIDTH)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.words(numbers).mean(-2)


class Waves(nn.Module):
    """Floating-point features of the data: no parameter comes before them."""

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = ids[..., None] * torch.arange(toy.WIDTH, device=ids.device) / toy.WORDS
        return hidden.sin(), hidden.cos()


def without_gradients_before_the_middle() -> Model:
    """Integers cross between block.0 and the stage behind it, so embed and block.0 are never trained."""
    plain = toy.model(blocks=2, tied=False)
    embed, first, second, head = plain.layers
    back = (Layer("round", Round, ("hidden",), ("numbers",)), Layer("again", Again, ("numbers",), ("hidden",)))
    return Model((embed, first, *back, second, replace(head, inputs=("hidden", "hidden", "labels"))))


def without_parameters_in_front() -> Model:
    plain = toy.model(blocks=2, tied=False)
    return Model((replace(plain.layers[0], build=Waves), *plain.layers[1:]))


@pytest.mark.parametrize(("order", "replicas"), [("1f1b", None), ("1f1b", [2, 1, 2]), ("zb-h1", None)])
@pytest.mark.parametrize("recompute", [0.0, 1.0])
@pytest.mark.parametrize(
    ("model", "partition"),
    [(without_gradients_before_the_middle(), [2, 1, 3]), (without_parameters_in_front(), [1, 1, 2])],
    ids=["integers", "features"],
)
def test_stages_without_gradients_are_left_alone(
    model: Model, partition: list[int], recompute: float, order: str, replicas: list[int] | None, tmp_path: Path
) -> None:
    """One process would do the same."""
    plain = job(partition, "bsp")
    spec = plain.spec.model_copy(update={"pipeline": plain.spec.pipeline.model_copy(update={"schedule": order})})
    whole = harness.job_of(spec, partition, recompute, replicas)
    weights = harness.train(whole, model, toy.Data(), tmp_path)
    expected = reference.bsp(spec, model, toy.Data(), whole.plan)
    assert weights.keys() == expected.keys()
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []


class FrozenEmbed(toy.Embed):
    def __init__(self) -> None:
        super().__init__()
        self.word.requires_grad_(False)


class FrozenHead(toy.Head):
    def __init__(self) -> None:
        super().__init__()
        self.decoder.weight.requires_grad_(False)


@pytest.mark.parametrize("replicas", [[1, 1], [2, 2]], ids=str)
@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
def test_a_tied_weight_that_is_frozen_stays_as_it_is(sync_mode: str, replicas: list[int], tmp_path: Path) -> None:
    """Its gradient must neither travel nor count in the norm, and the decay must leave it alone."""
    embed, *blocks, head = toy.model(blocks=2).layers
    frozen = (replace(embed, build=FrozenEmbed), *blocks, replace(head, build=FrozenHead))
    model, whole = Model(frozen, tied=toy.model().tied), job([2, 2], sync_mode, replicas)
    weights = harness.train(whole, model, toy.Data(), tmp_path)
    start = reference.Whole(model, toy.Data(), whole.spec.run.seed, "fp32").owned()
    assert torch.equal(weights["embed.word.weight"], start["embed.word.weight"])
    assert not torch.equal(weights["block.0.linear.weight"], start["block.0.linear.weight"])


def refuse(minibatch: Minibatch) -> Minibatch:
    raise IndexError("list index out of range")


@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
@pytest.mark.parametrize("partition", [[4], [2, 2], [1, 1, 2]], ids=str)
def test_data_that_ends_in_the_middle_is_named(sync_mode: str, partition: list[int], tmp_path: Path) -> None:
    failures = harness.failures(job(partition, sync_mode), toy.model(blocks=2), Marked(refuse), tmp_path)
    message = only(failures, 0, DataError).message
    assert message == "the data has no minibatch 4 (IndexError: list index out of range)"
