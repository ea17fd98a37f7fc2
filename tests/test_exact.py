"""Pipelined training equals its one-process reference bit for bit (design: exactness is the test)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import harness, reference, toy
from worker import data, models, replicas
from worker.data.base import Source
from worker.models.base import Model
from worker.precision import LossScaler
from worker.schedule.job import rank_actions
from worker.spec.cluster import BertSpec, ClusterSpec, DataSpec, OptimizerSpec, PipelineSpec, RunSpec
from worker.spec.job import Job, StageTimes
from worker.spec.pipeline import CHUNKED
from worker.stash import WeightStash

PARTITIONS = [[6], [3, 3], [1, 2, 2, 1]]
MODEL, DATA = toy.model(), toy.Data()


def spec(
    sync_mode: str, order: str = "1f1b", steps: int = 10, per_step: int | None = None, **optimizer: object
) -> ClusterSpec:
    per_step = per_step or (5 if sync_mode == "bsp" else None)
    return ClusterSpec(
        machines=["cpu"],
        pipeline=PipelineSpec(sync_mode=sync_mode, schedule=order, minibatches_per_step=per_step),
        optimizer=OptimizerSpec(
            **{"lr": 1e-2, "clip_grad_norm": 0.5, "warmup_steps": 3, "schedule": "linear"} | optimizer
        ),
        run=RunSpec(steps=steps, seed=3, stall_timeout=20.0),
    )


def assert_equal(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert weights.keys() == expected.keys()
    wrong = [name for name in weights if not torch.equal(weights[name], expected[name])]
    assert not wrong


def assert_exact(
    job: Job,
    folder: Path,
    model: Model = MODEL,
    source: Source = DATA,
    prepare: Callable[[], None] | None = None,
) -> None:
    """Train ``job`` and compare its weights with those of the one-process reference."""
    one_process = {"asp": reference.asp, "bsp": reference.bsp}[job.spec.pipeline.sync_mode]
    assert_equal(harness.train(job, model, source, folder, prepare), one_process(job.spec, model, source, job.plan))


@pytest.mark.parametrize("recompute", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_bsp_equals_one_process(schedule: str, partition: list[int], recompute: float, tmp_path: Path) -> None:
    job = harness.job_of(spec("bsp", schedule), partition, recompute)
    assert_exact(job, tmp_path)


@pytest.mark.parametrize("recompute", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
def test_asp_equals_its_replay(partition: list[int], recompute: float, tmp_path: Path) -> None:
    job = harness.job_of(spec("asp", steps=20), partition, recompute)
    assert_exact(job, tmp_path)


@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
@pytest.mark.parametrize("counts", [[1, 1, 1], [2, 1, 2]], ids=str)
def test_ranks_on_many_machines_are_exact(sync_mode: str, counts: list[int], tmp_path: Path) -> None:
    job = harness.job_of(spec(sync_mode), [2, 2, 2], replicas=counts)
    assert_exact(job, tmp_path, prepare=harness.make_far)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("recompute", [0.0, 1.0])
@pytest.mark.parametrize("order", ["interleaved", "zb-v", "zb-h1", "zb-h2", "zb-auto", "none"])
def test_every_flushing_schedule_is_exact(order: str, recompute: float, tied: bool, tmp_path: Path) -> None:
    partition, chunks = ([2, 1, 2, 1], 2) if order in CHUNKED else ([2, 3, 1], 1)
    job = harness.job_of(spec("bsp", order, per_step=6), partition, recompute, chunks=chunks)
    assert_exact(job, tmp_path, toy.model(tied=tied))


def test_a_schedule_searched_for_measured_times_is_exact(tmp_path: Path) -> None:
    job = harness.job_of(spec("bsp", "zb-auto", per_step=6), [2, 3, 1])
    times = [StageTimes(forward=f, input_grad=g, weight_grad=w) for f, g, w in ((1, 1, 1), (3, 3, 4), (4, 2, 1))]
    searched = job.model_copy(update={"plan": job.plan.model_copy(update={"times": times})})
    orders = [[list(rank_actions(job.spec, each.plan, rank)) for rank in range(3)] for each in (job, searched)]
    assert orders[0] != orders[1]
    assert_exact(searched, tmp_path)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("order", ["2bw", "accumulate", "none"])
def test_every_streaming_schedule_is_exact(order: str, tied: bool, tmp_path: Path) -> None:
    per_step = None if order == "none" else 4
    job = harness.job_of(spec("asp", order, steps=6, per_step=per_step), [2, 3, 1])
    assert_exact(job, tmp_path, toy.model(tied=tied))


@pytest.mark.parametrize(("sync_mode", "order"), [("asp", "1f1b"), ("bsp", "1f1b"), ("bsp", "zb-h1")])
def test_bf16_is_exact(sync_mode: str, order: str, tmp_path: Path) -> None:
    whole = spec(sync_mode, order).model_copy(update={"precision": "bf16"})
    assert_exact(harness.job_of(whole, [2, 3, 1], 0.5), tmp_path)


@pytest.mark.parametrize("order", ["1f1b", "zb-h1"])
def test_fp16_is_the_same_on_any_number_of_stages(order: str, tmp_path: Path) -> None:
    weights = []
    for partition in ([6], [2, 3, 1]):
        folder = tmp_path / str(len(partition))
        folder.mkdir()
        whole = spec("bsp", order).model_copy(update={"precision": "fp16"})
        weights.append(harness.train(harness.job_of(whole, partition, 0.5), MODEL, DATA, folder))
    assert_equal(*weights)


@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
def test_fp16_leaves_an_update_out_when_a_gradient_overflows(sync_mode: str, tmp_path: Path) -> None:
    """A factor that overflows in every step but the last few must leave the weights where they began."""
    weights = {}
    for exponent in (10, 60):
        folder = tmp_path / str(exponent)
        folder.mkdir()

        def begin(exponent: int = exponent) -> None:
            LossScaler.__init__ = lambda self: self.__dict__.update(factor=2.0**exponent, _good=0)  # type: ignore

        whole = spec(sync_mode, steps=4).model_copy(update={"precision": "fp16"})
        weights[exponent] = harness.train(harness.job_of(whole, [3, 3]), MODEL, DATA, folder, begin)
    start = reference.Whole(MODEL, DATA, 3, "fp32").owned()
    assert all(torch.equal(weights[60][name], start[name]) for name in start)
    assert not any(torch.equal(weights[10][name], start[name]) for name in start)


@pytest.mark.parametrize("in_flight", [1, 2, 6])
@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
def test_any_depth_is_exact(sync_mode: str, in_flight: int, tmp_path: Path) -> None:
    whole = spec(sync_mode)
    pipeline = whole.pipeline.model_copy(update={"in_flight": in_flight})
    assert_exact(harness.job_of(whole.model_copy(update={"pipeline": pipeline}), [2, 3, 1]), tmp_path)


@pytest.mark.parametrize("counts", [[2, 1], [1, 2], [2, 2], [3, 2]], ids=str)
@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
def test_replicas_are_exact(sync_mode: str, counts: list[int], tmp_path: Path) -> None:
    """Counts that differ between neighbours and do not divide the minibatches."""
    tied = sync_mode == "bsp" or len(set(counts)) == 1
    job = harness.job_of(spec(sync_mode, steps=7), [2, 4], 0.5, counts)
    assert_exact(job, tmp_path, toy.model(tied=tied))


@pytest.mark.parametrize(
    ("order", "counts"), [("zb-h2", [2, 1, 2]), ("interleaved", [3, 3, 3, 3]), ("zb-v", [2, 2, 2, 2])]
)
def test_replicas_of_several_stages_are_exact(order: str, counts: list[int], tmp_path: Path) -> None:
    """Where weight gradients leave as they are made, and where a rank sums for two stages; in many buckets."""

    def mutate() -> None:
        replicas.BUCKET_ELEMENTS = 50

    partition, chunks = ([1, 2, 2, 1], 2) if order in CHUNKED else ([2, 2, 2], 1)
    job = harness.job_of(spec("bsp", order, steps=5, per_step=7), partition, 0.5, counts, chunks)
    assert_exact(job, tmp_path, prepare=mutate)


def test_fp16_is_the_same_with_weight_gradients_apart(tmp_path: Path) -> None:
    weights = []
    for order in ("1f1b", "zb-h1"):
        folder = tmp_path / order
        folder.mkdir()
        whole = spec("bsp", order, steps=4).model_copy(update={"precision": "fp16"})
        weights.append(harness.train(harness.job_of(whole, [2, 4], 0.5, [2, 1]), MODEL, DATA, folder))
    assert_equal(*weights)


@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
def test_replicas_with_many_buckets_are_exact(sync_mode: str, tmp_path: Path) -> None:
    def mutate() -> None:
        replicas.BUCKET_ELEMENTS = 50

    job = harness.job_of(spec(sync_mode, steps=5), [2, 4], 0.0, [2, 2])
    one_process = {"asp": reference.asp, "bsp": reference.bsp}[sync_mode]
    assert_equal(harness.train(job, MODEL, DATA, tmp_path, mutate), one_process(job.spec, MODEL, DATA, job.plan))


@pytest.mark.parametrize("name", ["adam", "nadam", "lamb", "muon", "sgd"])
@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
def test_every_optimizer_is_exact(sync_mode: str, name: str, tmp_path: Path) -> None:
    momentum = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    job = harness.job_of(spec(sync_mode, name=name, clip_grad_norm=None, schedule="cosine", **momentum), [3, 3])
    assert_exact(job, tmp_path)


def test_a_rate_by_delay_is_exact(tmp_path: Path) -> None:
    assert_exact(harness.job_of(spec("asp", steps=20, pipemare=15), [2, 2, 1, 1]), tmp_path)


def test_a_rate_by_replicas_is_exact(tmp_path: Path) -> None:
    job = harness.job_of(spec("asp", steps=9, scale_lr_by_replicas=True), [2, 2, 2], replicas=[2, 1, 3])
    assert_exact(job, tmp_path, toy.model(tied=False))


def test_untied_model_is_exact(tmp_path: Path) -> None:
    model = toy.model(tied=False)
    job = harness.job_of(spec("asp"), [2, 2, 2])
    assert_exact(job, tmp_path, model)


@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
def test_bert_on_text_is_exact(sync_mode: str, tmp_path: Path) -> None:
    """The real model and data: several inputs, two loss terms, padding."""
    (tmp_path / "corpus").write_text(Path(torch.__file__).read_text()[:60_000])
    text = DataSpec(source="text", path=str(tmp_path / "corpus"), sequence_length=32, minibatch_size=4, vocab_size=400)
    bert = BertSpec(hidden_size=32, num_layers=2, num_heads=2, sentence_order=True)
    whole = spec(sync_mode, steps=6).model_copy(update={"model": bert, "data": text})
    model, source = models.build_model(whole), data.open_source(whole, tmp_path / "cache")
    job = harness.job_of(whole, [1, 2, 2, 1], 0.5)
    assert_exact(job, tmp_path, model, source)


@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
def test_minibatches_of_any_length_are_exact(sync_mode: str, tmp_path: Path) -> None:
    job = harness.job_of(spec(sync_mode), [2, 3, 1], 0.5)
    assert_exact(job, tmp_path, MODEL, toy.Data(varies=True))


def test_backward_with_the_newest_weights_is_caught(tmp_path: Path) -> None:
    """A mutant that updates in place under graphs in flight, as if nothing were stashed."""

    def mutate() -> None:
        WeightStash.before_update = lambda self: None  # type: ignore[method-assign]

    job = harness.job_of(spec("asp", steps=20), [3, 3])
    with pytest.raises(AssertionError):
        assert_equal(harness.train(job, MODEL, DATA, tmp_path, mutate), reference.asp(job.spec, MODEL, DATA, job.plan))


def test_recomputing_with_the_newest_weights_is_caught(tmp_path: Path) -> None:
    """A mutant that recomputes a graph on the current version instead of its own."""
    install = WeightStash.install

    def mutate() -> None:
        WeightStash.install = lambda self, version: install(self, self.current)  # type: ignore[method-assign]

    job = harness.job_of(spec("asp", steps=20), [3, 3], 1.0)
    with pytest.raises(AssertionError):
        assert_equal(harness.train(job, MODEL, DATA, tmp_path, mutate), reference.asp(job.spec, MODEL, DATA, job.plan))
