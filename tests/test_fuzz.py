"""Exactness where nobody chose the configuration: every pair of settings, random ones, and messages that are late."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import harness, reference, toy
from worker import build, replicas
from worker.communication import Address, Communicator
from worker.errors import ScheduleError
from worker.executor import Executor
from worker.schedule.job import prove
from worker.spec.cluster import ClusterSpec, OptimizerSpec, PipelineSpec, RunSpec
from worker.spec.job import Job
from worker.spec.pipeline import CHUNKED, OWN_DEPTH, REPLICATED, SYNC_MODES

FLUSHING = [name for name, modes in SYNC_MODES.items() if "bsp" in modes]


class Case(NamedTuple):
    """A way to train the toy model."""

    schedule: str
    sync_mode: str
    partition: tuple[int, ...]
    replicas: tuple[int, ...] = ()
    tied: bool = True
    recompute: float = 0.0
    clip: float | None = 0.5
    per_step: int | None = None
    in_flight: int | None = None
    steps: int = 3
    precision: str = "fp32"
    varies: bool = False
    chunks: int = 1

    def job(self) -> Job:
        """Raises ScheduleError where the schedule does not fit."""
        pipeline = PipelineSpec(
            sync_mode=self.sync_mode,
            schedule=self.schedule,
            minibatches_per_step=self.per_step,
            in_flight=self.in_flight or "auto",
        )
        spec = ClusterSpec(
            machines=["cpu"],
            pipeline=pipeline,
            precision=self.precision,
            optimizer=OptimizerSpec(lr=1e-2, clip_grad_norm=self.clip, warmup_steps=2, schedule="linear"),
            run=RunSpec(steps=self.steps, seed=5, stall_timeout=20.0),
        )
        job = harness.job_of(spec, list(self.partition), self.recompute, list(self.replicas), self.chunks)
        prove(job.spec, job.plan)
        return job


def assert_case(case: Case, prepare: Callable[[], None] | None = None) -> None:
    """Train, and compare with one process to the last bit."""
    job, model, data = case.job(), toy.model(tied=case.tied), toy.Data(varies=case.varies)
    with tempfile.TemporaryDirectory() as folder:
        weights = harness.train(job, model, data, Path(folder), prepare)
    one_process = {"asp": reference.asp, "bsp": reference.bsp}[case.sync_mode]
    expected = one_process(job.spec, model, data, job.plan)
    assert weights.keys() == expected.keys()
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []


def pairwise(*axes: list[Any], fits: Callable[..., bool]) -> list[tuple[Any, ...]]:
    """Rows of the product of ``axes`` such that any two values that can meet do so; chosen greedily."""
    pairs = {row: set(combinations(enumerate(row), 2)) for row in product(*axes) if fits(*row)}
    left, chosen = set().union(*pairs.values()), []
    while left:
        chosen.append(max(pairs, key=lambda row: len(left & pairs[row])))
        left -= pairs[chosen[-1]]
    return chosen


MATRIX = pairwise(
    FLUSHING,
    [(), (2, 2), (2, 1), (1, 2), (3, 2)],
    [True, False],
    [0.0, 0.5, 1.0],
    [0.5, None],
    fits=lambda schedule, replicas, *_: schedule not in CHUNKED or len(set(replicas)) < 2,
)


@pytest.mark.parametrize(("schedule", "replicas", "tied", "recompute", "clip"), MATRIX)
def test_matrix_of_flushing_schedules(
    schedule: str, replicas: tuple[int, ...], tied: bool, recompute: float, clip: float | None
) -> None:
    """Of the 384 cases of schedule x replicas x tied x recompute x clip, so many that every pair of them is met."""
    partition, chunks = ((2, 4), 1)
    if schedule in CHUNKED:
        partition, replicas, chunks = (1, 2, 2, 1), 2 * replicas, 2
    assert_case(Case(schedule, "bsp", partition, replicas, tied, recompute, clip, per_step=4, chunks=chunks))


PARTITIONS = [(6,), (1, 5), (3, 3), (5, 1), (2, 2, 2), (1, 4, 1), (1, 2, 2, 1), (3, 1, 1, 1)]
CHUNKS = [((1, 2, 2, 1), 2), ((2, 1, 1, 2), 2), ((1, 1, 1, 1, 1, 1), 2), ((1, 1, 1, 1, 1, 1), 3)]
REPLICAS = {2: [(2, 2), (2, 1), (1, 2), (3, 2), (1, 3)], 3: [(1, 2, 1), (2, 1, 2), (1, 3, 1), (1, 1, 2)]}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    schedule = draw(st.sampled_from(sorted(SYNC_MODES)))
    sync_mode = draw(st.sampled_from(SYNC_MODES[schedule]))
    several = [(p, chunks) for p, chunks in CHUNKS if chunks == 2 or schedule != "zb-v"]
    partition, chunks = draw(st.sampled_from(several if schedule in CHUNKED else [(p, 1) for p in PARTITIONS]))
    replicas: tuple[int, ...] = ()
    if schedule in CHUNKED:
        replicas = len(partition) * (draw(st.integers(1, 2)),)
    elif schedule in REPLICATED and len(partition) in REPLICAS and draw(st.booleans()):
        replicas = draw(st.sampled_from(REPLICAS[len(partition)]))
    accumulates = sync_mode == "bsp" or schedule in ("2bw", "accumulate")
    has_own_depth = schedule in ("none", "zb-v") or (replicas and schedule in OWN_DEPTH)
    return Case(
        schedule,
        sync_mode,
        partition,
        replicas,
        # Under ASP stages that share a weight must have equally many replicas.
        draw(st.booleans()) if sync_mode == "bsp" or not replicas or replicas[0] == replicas[-1] else False,
        # Under accumulate recomputed layers meet newer weights as backwards do, which the reference does not replay.
        draw(st.sampled_from([0.0, 0.34, 0.5, 1.0])) if schedule != "accumulate" else 0.0,
        draw(st.sampled_from([None, 0.1, 0.5])),
        draw(st.integers(1, 8)) if accumulates else None,
        draw(st.none() | st.integers(1, 9)) if not has_own_depth else None,
        draw(st.integers(1, 4)) if accumulates else draw(st.integers(1, 12)),
        draw(st.sampled_from(["fp32", "fp32", "bf16"])),
        draw(st.booleans()),
        chunks,
    )


def make_small_buckets() -> None:
    """Several buckets of gradients, small as the model is."""
    replicas.BUCKET_ELEMENTS = 100


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_any_case_is_exact(case: Case) -> None:
    try:
        case.job()
    except ScheduleError:
        assume(False)
    assert_case(case, make_small_buckets)


@pytest.mark.parametrize(
    "case",
    [
        Case("1f1b", "asp", (3, 3), in_flight=60, steps=70),
        Case("zb-h2", "bsp", (3, 3), in_flight=60, per_step=60, steps=1),
        Case("interleaved", "bsp", (1, 2, 2, 1), in_flight=30, per_step=30, steps=1, chunks=2),
    ],
    ids=lambda case: case.schedule,
)
def test_many_minibatches_in_flight_do_not_deadlock(case: Case) -> None:
    """Ranks that wait for their oldest send too soon wait for each other."""
    assert_case(case)


class Late(Communicator):
    """Sends nothing at once: messages wait in a bag, from which a thread takes any of them, after a random time.

    Tensors are not copied, so one that is written to before it has left arrives wrong.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._bag: list[tuple[Tensor, Address]] = []
        self._one_at_a_time = threading.RLock()
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        threading.Thread(target=self._deliver, daemon=True).start()

    def send(self, tensor: Tensor, address: Address, later: bool = False) -> None:
        """As the real one, later."""
        if address.source == address.destination:
            super().send(tensor, address, later)
            return
        with self._changed:
            self._bag.append((tensor.detach(), address))  # out of order none can wait for the next
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait for the bag to be empty, too."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._failure or not self._bag, 20)
        if self._failure:
            raise self._failure
        super().finish()

    def _flush(self) -> None:
        with self._one_at_a_time:
            super()._flush()

    def _deliver(self) -> None:
        generator = random.Random()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._bag)
                time.sleep(generator.choice([0.0, 0.0, 0.001, 0.004]))
                index = generator.randrange(len(self._bag))
                with self._one_at_a_time:
                    super().send(*self._bag[index])
                with self._changed:
                    del self._bag[index]
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()


def make_late() -> None:
    """Late messages, and random pauses between actions."""
    make_small_buckets()
    execute = Executor._execute
    generator = random.Random()

    def slowly(self: Executor, *args: Any) -> Any:
        time.sleep(generator.choice([0.0, 0.0, 0.002, 0.006]))
        return execute(self, *args)

    build.Communicator = Late  # type: ignore[misc]
    Executor._execute = slowly  # type: ignore[method-assign]


def make_late_and_far() -> None:
    """The same over the network, as between machines."""
    make_late()
    harness.make_far()


@pytest.mark.parametrize(
    "case",
    [
        Case("1f1b", "asp", (3, 3), steps=12),
        Case("1f1b", "asp", (1, 2, 2, 1), steps=12, in_flight=7, recompute=0.5),
        Case("1f1b", "asp", (2, 4), (2, 2), steps=9),
        Case("1f1b", "asp", (2, 2, 2), (1, 2, 1), steps=9),
        Case("2bw", "asp", (2, 3, 1), per_step=4),
        Case("accumulate", "asp", (2, 2, 2), per_step=1, steps=9),
        Case("1f1b", "bsp", (2, 4), (2, 2), per_step=5),
        Case("1f1b", "bsp", (2, 4), (1, 3), per_step=5),
        Case("gpipe", "bsp", (1, 2, 2, 1), per_step=4),
        Case("interleaved", "bsp", (1, 2, 2, 1), per_step=4, chunks=2),
        Case("zb-v", "bsp", (1, 2, 2, 1), per_step=5, chunks=2),
        Case("interleaved", "bsp", (1, 2, 2, 1), (2, 2, 2, 2), per_step=5, chunks=2),
        Case("zb-h2", "bsp", (2, 2, 2), per_step=5),
        Case("zb-h2", "bsp", (2, 4), (2, 3), per_step=5),
    ],
    ids=lambda case: f"{case.schedule}-{case.sync_mode}-{case.partition}-{case.replicas}",
)
@pytest.mark.parametrize("prepare", [make_late, make_late_and_far], ids=["shared-memory", "network"])
def test_late_messages_change_nothing(prepare: Callable[[], None], case: Case) -> None:
    assert_case(case, prepare)
