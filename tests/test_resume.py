"""A resumed run ends with the very weights and optimizer state of one that nothing disturbed; and each thing that a
checkpoint holds is needed for that."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import reference, toy
from tests.saved import DATA, EVERY, MODEL, STEPS, Alone, Run, job_of, kill_at, resumed, spec
from worker import optimizer
from worker.checkpoint import changes
from worker.errors import CheckpointError
from worker.models.base import Model
from worker.precision import LossScaler
from worker.recovery import randomness, snapshot
from worker.recovery.restore import data_offset
from worker.schedule import job as schedule
from worker.spec.job import Job
from worker.spec.records import Result


class Noisy(toy.Block):
    """A layer with all that makes resuming hard: random numbers that nobody keys, and a buffer that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def reset_parameters(self) -> None:
        for part in (self.linear, self.norm):
            part.reset_parameters()
        self.seen.zero_()

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        self.seen += 1
        return super().forward(hidden, mask) * (1 + 0.1 * random.random()) + 0.001 * self.seen


def noisy() -> Model:
    layers = [replace(each, build=Noisy) if each.name == "block.1" else each for each in MODEL.layers]
    return replace(MODEL, layers=tuple(layers))


WAYS = {
    "bsp": job_of(spec(), recompute_ratio=0.5),
    "gpipe": job_of(spec(order="gpipe", name="lamb"), [3, 3]),
    "interleaved": job_of(spec(order="interleaved", per_step=4, name="muon"), [2, 1, 2, 1], chunks=2),
    "zb-h1": job_of(spec(order="zb-h1", name="sgd", momentum=0.9)),
    "zb-v": job_of(spec(order="zb-v", per_step=4), [2, 1, 2, 1], chunks=2),
    "asp": job_of(spec("asp"), recompute_ratio=0.5),
    "2bw": job_of(spec("asp", "2bw"), [3, 3]),
    "accumulate": job_of(spec("asp", "accumulate"), [3, 3]),
    "bsp replicas": job_of(spec(), [2, 4], replicas=[1, 2]),
    "asp replicas": job_of(spec("asp", name="nadam"), [2, 4], replicas=[2, 2], recompute_ratio=1.0),
    "asp odd replicas": job_of(spec("asp"), [6], replicas=[3]),  # which do not divide the steps between checkpoints
    "fp16": job_of(spec(precision="fp16"), [3, 3]),
    "noisy": job_of(spec("asp"), [3, 3]),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The undisturbed run of each way, trained once."""

    def grow_often() -> None:
        LossScaler.GROWTH_INTERVAL = 3

    @cache
    def trained(way: str) -> Run:
        model = noisy() if way == "noisy" else MODEL
        return Run(tmp_path_factory.mktemp("whole") / "run", WAYS[way], model).train(lambda _: grow_often())

    return trained


def again(folder: Path, origin: Run, mutate: Callable[[], None] = lambda: None) -> Run:
    def prepare(rank: int) -> None:
        LossScaler.GROWTH_INTERVAL = 3
        mutate()

    return resumed(folder, origin).train(prepare)


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(
    way: str, whole: Callable[[str], Run], tmp_path: Path
) -> None:
    rest = again(tmp_path / "rest", whole(way))
    assert rest.state() == whole(way).state()
    assert "goes on from checkpoint step-4, bit for bit" in rest.log()


def _forget(target: Any, name: str) -> Callable[[], None]:
    return lambda: setattr(target, name, lambda *_: None)


def _rate_from_the_beginning() -> None:
    right = optimizer.learning_rate
    optimizer.learning_rate = lambda spec, update, *more: right(spec, update - EVERY, *more)  # type: ignore[assignment]


def _data_from_the_beginning() -> None:
    right = DATA.minibatch
    DATA.minibatch = lambda number: right(number - 5 * EVERY)  # type: ignore[method-assign]


def _without(*prefixes: str) -> Callable[[], None]:
    def mutate() -> None:
        right = snapshot.put_back

        def mutant(executor: Any, tensors: dict[str, Tensor], *more: Any) -> None:
            right(executor, {k: v for k, v in tensors.items() if not k.startswith(prefixes)}, *more)

        snapshot.put_back = mutant  # type: ignore[assignment]

    return mutate


MUTANTS = {
    "optimizer state": ("bsp", _without(snapshot.OPTIMIZER)),
    "the stashed version": ("2bw", _without(snapshot.OLDER)),
    "learning rate position": ("bsp", _rate_from_the_beginning),
    "data cursor": ("bsp", _data_from_the_beginning),
    "random states": ("noisy", _forget(randomness, "restore")),
    "buffers": ("noisy", lambda: setattr(snapshot, "buffers", lambda *_: iter(()))),
    "loss scale": ("fp16", _forget(LossScaler, "restore")),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_nothing_a_checkpoint_holds_can_be_left_out(mutant: str, whole: Callable[[str], Run], tmp_path: Path) -> None:
    way, mutate = MUTANTS[mutant]
    assert again(tmp_path / "rest", whole(way), mutate).state() != whole(way).state()


def test_a_pipeline_that_does_not_drain_cannot_be_saved(tmp_path: Path) -> None:
    def mutate(rank: int) -> None:
        schedule.segments = lambda spec, start=0: iter([range(start, spec.run.steps)])  # type: ignore[assignment]

    errors = Run(tmp_path / "run", WAYS["asp"]).failures(mutate)
    assert any("in flight" in str(error) for error in errors)


@pytest.mark.parametrize("way", ["asp", "asp replicas", "asp odd replicas", "2bw", "accumulate"])
def test_draining_changes_nothing_but_what_the_schedule_says(way: str, whole: Callable[[str], Run]) -> None:
    """The reference, told where the pipeline drains, ends with the same weights."""
    job = WAYS[way]
    expected = reference.asp(job.spec, MODEL, DATA, job.plan)
    found = Alone(whole(way).folder, MODEL, job.spec).executor.parameters()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("step", [5, 11])
@pytest.mark.parametrize("way", ["bsp", "asp replicas"])
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_been(
    way: str, step: int, whole: Callable[[str], Run], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", WAYS[way])
    assert None in run.failures(kill_at(step))
    left = run.steps()
    run.train()
    assert run.state() == whole(way).state()
    assert left in ([], [4], [8, 4])
    assert (f"step-{max(left)}" in run.log()) if left else "goes on" not in run.log()


def test_a_run_that_died_behind_its_last_checkpoint_only_ends(whole: Callable[[str], Run], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", WAYS["bsp"])
    shutil.copytree(whole("bsp").files.folder, run.files.folder, dirs_exist_ok=True)
    run.attempts = whole("bsp").attempts
    run.files.result.unlink()
    run.train()
    before, after = (Result.model_validate_json(each.files.result.read_bytes()) for each in (whole("bsp"), run))
    assert (after.weights_sha256, after.loss) == (before.weights_sha256, before.loss)


def test_other_partitions_of_bsp_are_bit_exact(whole: Callable[[str], Run], tmp_path: Path) -> None:
    """4 stages, then 2, then 3."""
    four = Run(tmp_path / "four", job_of(spec(), [2, 1, 2, 1])).train()
    two = resumed(tmp_path / "two", four, job_of(spec(), [4, 2], recompute_ratio=1.0)).train()
    three = resumed(tmp_path / "three", two, job_of(spec(order="zb-h1"), [1, 2, 3]), step=8).train()
    assert two.state() == three.state() == four.state() == whole("bsp").state()
    assert "partition is [4, 2], was [2, 1, 2, 1]" in two.log()


def losses(run: Run) -> dict[int, float]:
    """The loss of every step, as the last rank has it."""
    lines = run.files.metrics(len(run.job.ranks) - 1).read_text().splitlines()
    return {step["step"]: step["loss"] for step in map(json.loads, lines)}


def test_with_more_replicas_the_next_loss_is_bit_exact(whole: Callable[[str], Run], tmp_path: Path) -> None:
    """One replica, then two: the first step begins with the same weights; later ones add up in another order."""
    two = resumed(tmp_path / "two", whole("bsp"), job_of(spec(), [3, 3], replicas=[2, 1])).train()
    assert losses(two)[EVERY + 1] == losses(whole("bsp"))[EVERY + 1]
    assert losses(two)[STEPS] == pytest.approx(losses(whole("bsp"))[STEPS], rel=1e-4)


@pytest.mark.parametrize(
    "origin, job, differs",
    [
        ("bsp", job_of(spec(), [3, 3], replicas=[2, 1]), "replicas is [2, 1], was [1, 1, 1]"),
        ("asp", job_of(spec(), [3, 3]), "pipeline.sync_mode is bsp, was asp"),
        ("bsp", job_of(spec("asp"), [3, 3]), "pipeline.minibatches_per_step is None, was 5"),
        ("asp", job_of(spec("asp", "2bw"), [3, 3]), "pipeline.schedule is 2bw, was 1f1b"),
    ],
)
def test_another_way_of_training_says_what_changes(
    origin: str, job: Job, differs: str, whole: Callable[[str], Run], tmp_path: Path
) -> None:
    run = resumed(tmp_path / "run", whole(origin), job).train()
    assert differs in run.log()
    assert run.saved(4).parameters.keys() == run.saved(STEPS).parameters.keys()


@pytest.mark.parametrize("way", ["asp replicas", "2bw", "noisy"])
def test_weights_and_optimizer_are_exact_on_any_layout(way: str, whole: Callable[[str], Run]) -> None:
    """What one rank reads is what several wrote."""
    origin = whole(way)
    alone = Alone(origin.folder, origin.model, origin.job.spec)
    assert alone.saved and alone.saved.step == STEPS
    camera = snapshot.Camera(alone.executor, 0, range(1), torch.device("cpu"))
    taken = camera.take()
    assert taken.layers == origin.saved().layers
    for name in taken.layers.values():
        for key, tensor in taken.files[name].items():
            assert torch.equal(tensor, {**alone.saved.weights}[key]), key


@pytest.mark.parametrize("per_step, size, offset", [(5, 3, 0), (1, 3, 16), (8, 3, -12), (5, 6, -10), (5, 2, 10)])
def test_the_data_goes_on_where_it_stood(per_step: int, size: int, offset: int, whole: Callable[[str], Run]) -> None:
    """After 4 steps of 5 minibatches of 3: minibatch 20 comes next, or the first one behind 60 sequences."""
    new = spec(per_step=per_step)
    new = new.model_copy(update={"data": new.data.model_copy(update={"minibatch_size": size})})
    assert data_offset(whole("bsp").saved(4), new) == offset


@pytest.mark.parametrize(
    "update, reason",
    [
        ({"optimizer": spec(name="sgd").optimizer}, "has the state of adamw, which sgd cannot go on with"),
        ({"run": spec(run={"steps": 4}).run}, "has all of its 4 steps behind it"),
    ],
)
def test_what_cannot_be_is_refused(update: dict[str, Any], reason: str, whole: Callable[[str], Run]) -> None:
    with pytest.raises(CheckpointError, match=reason):
        changes.refuse(whole("bsp").saved(4), spec().model_copy(update=update))


@pytest.mark.parametrize(
    "model, reason",
    [
        (toy.model(3), "it has block.3"),
        (toy.model(5), "it does not have block.4"),
        (toy.model(tied=False), "head.decoder"),
    ],
)
def test_another_model_is_refused(model: Model, reason: str, whole: Callable[[str], Run]) -> None:
    with pytest.raises(CheckpointError, match=reason):
        Alone(whole("bsp").folder, model, spec(run={"steps": 20}))
