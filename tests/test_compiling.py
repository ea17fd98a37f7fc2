"""torch.compile of layers: the same weights wherever the model is cut, recomputed or not; what cannot be is said."""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from tests import harness, ranks, toy
from tests.rig import SLOW
from tests.test_exact import spec
from worker import compiling
from worker.eager import spare_the_compiler
from worker.errors import ModelError
from worker.spec.job import Job

MODEL, DATA = toy.model(blocks=1), toy.Data()


def begin(cache: Path, path: str) -> None:
    os.environ["PATH"] = path
    warnings.simplefilter("ignore")  # the compiler's own, which pytest would make errors of
    spare_the_compiler()
    compiling.prepare(cache)


def job(partition: list[int], recompute: float) -> Job:
    whole = spec("bsp", steps=3)
    pipeline = whole.pipeline.model_copy(update={"compile": True})
    return harness.job_of(whole.model_copy(update={"pipeline": pipeline}), partition, recompute)


@SLOW
def test_the_partition_and_recomputation_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "DEADLINE", 240.0)  # a compiler takes its time
    weights = []
    for partition, recompute in (([3], 0.0), ([1, 2], 1.0)):
        folder = tmp_path / str(len(partition))
        folder.mkdir()
        prepared = partial(begin, tmp_path / "cache", os.environ["PATH"])
        weights.append(harness.train(job(partition, recompute), MODEL, DATA, folder, prepared))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any((tmp_path / "cache" / "inductor").iterdir())


@SLOW
def test_without_a_compiler_it_is_said_what_to_do(tmp_path: Path) -> None:
    (error,) = harness.failures(job([3], 0.0), MODEL, DATA, tmp_path, partial(begin, tmp_path / "c", "/nowhere"))
    assert isinstance(error, ModelError)
    assert error.message.startswith("layers embed to head cannot be compiled: ")
    assert "needs a C++ compiler on every machine" in str(error)
