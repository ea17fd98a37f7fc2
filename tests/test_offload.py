"""Activations in host memory: no bit differs, and what is held anyway is not copied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests import harness
from tests.test_exact import assert_exact, spec
from worker import offload
from worker.spec.job import Job
from worker.stage import covered


def job_of(sync_mode: str, order: str, recompute: float) -> Job:
    plain = spec(sync_mode, order)
    pipeline = plain.pipeline.model_copy(update={"offload_ratio": 0.5})
    return harness.job_of(plain.model_copy(update={"pipeline": pipeline}), [2, 4], recompute)


def offload_everything() -> None:
    """The toy's tensors are all too small to be worth it."""
    offload.SMALLEST = 0


@pytest.mark.parametrize(
    ("sync_mode", "order", "recompute"),
    [("asp", "1f1b", 0.0), ("asp", "accumulate", 0.0), ("bsp", "1f1b", 0.5), ("bsp", "zb-h1", 0.25)],
)
def test_offloaded_layers_are_exact(sync_mode: str, order: str, recompute: float, tmp_path: Path) -> None:
    assert_exact(job_of(sync_mode, order, recompute), tmp_path, prepare=offload_everything)


def lose_everything() -> None:
    """A mutant that gives back zeros."""
    offload_everything()
    offload._Away.back = lambda away: torch.zeros_like(away._copy)  # type: ignore[method-assign]


def test_offloaded_layers_use_what_was_put_away(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        assert_exact(job_of("bsp", "1f1b", 0.0), tmp_path, prepare=lose_everything)


def test_only_what_nobody_holds_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    away: list[int] = []

    class Recorded(offload._Away):
        def __init__(self, tensor: Tensor) -> None:
            away.append(tensor.numel())
            super().__init__(tensor)

    monkeypatch.setattr(offload, "_Away", Recorded)
    linear, x = nn.Linear(256, 512), torch.ones(256, 256)
    with offload.Offloaded([*linear.parameters(), x]):
        y = linear(x).exp()  # saves its own result; the map saves its input and weight
        small = x[:1].exp().sum()
    assert away == [256 * 512]
    (y.sum() + small).backward()
    assert torch.equal(linear.bias.grad, y.detach().sum(0))


def test_a_ratio_covers_whole_layers() -> None:
    assert [covered(10, ratio) for ratio in (0.0, 0.19, 0.2, 1.0)] == [0, 1, 2, 10]
