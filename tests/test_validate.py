"""What validate refuses, and in which words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from worker.errors import ScheduleError
from worker.schedule import SCHEDULES, Action, Kind, Setting, build, from_csv, validate
from worker.schedule.generate import one_f_one_b_flush, one_f_one_b_stream
from worker.schedule.job import prove
from worker.spec.checkpoint import CheckpointSpec
from worker.spec.cluster import ClusterSpec, PipelineSpec
from worker.spec.job import Plan


def parse(*rows: str) -> list[list[Action]]:
    return from_csv("\n".join(rows))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0F0,0F0,0B0"], "rank 0 runs 0F0, which rank 0 runs too"),
        (["0F0,0B0", "0F0,0B0"], "rank 1 runs 0F0, which rank 0 runs too"),
        (["0F0,0I0"], "stage 0 needs F, and B or both I and W, of minibatch 0; it has FI"),
        (["0F0,0B0", "1F0,1F1,1B0,1B1"], "stage 0 needs F, and B or both I and W, of minibatch 1; it has nothing"),
        (["0F0", "0B0"], "stage 0 splits minibatch 0 over ranks: F on rank 0, B on rank 1"),
        (["1F0,1B0"], "no rank runs stage 0, but stage 1 is run"),
        (["0B0,0F0"], "rank 0 runs 0B0 before 0F0"),
        (["0F0,0W0,0I0"], "rank 0 runs 0W0 before 0I0"),
        (["0F0,0F1,0B0,0B1", "1F1,1F0,1B0,1B1"], "rank 1 wants 0F1 from rank 0, which sends 0F0 first"),
        (
            ["0F0,0B0,0F1,0B1", "1F0,1F1,1B0,1B1"],
            "deadlock: rank 0 stands at 0B0 (action 1), which waits for 1B0; "
            "rank 1 stands at 1F1 (action 1), which waits for 0F1",
        ),
    ],
)
def test_refused(rows: list[str], message: str) -> None:
    with pytest.raises(ScheduleError) as error:
        validate(parse(*rows))
    assert error.value.message == message


def test_messages_told_apart_by_number_may_overtake() -> None:
    validate(parse("0F0,0F1,0B1,0B0", "1F1,1F0,1B1,1B0"), by_order=False)


def test_bounds_are_kept() -> None:
    ranks = build("1f1b", "asp", Setting(3, range(6)))
    validate(ranks, in_flight=3, versions=3)
    with pytest.raises(ScheduleError, match="rank 0 holds the activations of 3 minibatches; the bound is 2"):
        validate(ranks, in_flight=2)
    with pytest.raises(ScheduleError, match="rank 0 holds 3 versions of its weights; the bound is 2"):
        validate(ranks, versions=2)


def test_replicas_that_wait_for_each_other_are_refused() -> None:
    """The first rank updates with the second after its own first minibatch; the second waits for what comes behind."""
    ranks = parse("0F0,0B0,0F2,0B2", "0F1,0B1", "1F0,1B0,1F2,1F1,1B1,1B2")
    validate(ranks, by_order=False)
    both = Action(0, Kind.UPDATE, 1)
    ranks[0][2:2] = [both]
    ranks[1].append(both)
    for rank, stage in ((ranks[0], 0), (ranks[2], 1)):
        rank.append(Action(stage, Kind.UPDATE, 2))
    with pytest.raises(ScheduleError, match=r"rank 0 stands at 0U1 \(action 2\), which waits for 0U1; rank 1 "):
        validate(ranks, by_order=False)


def job(replicas: list[int], **pipeline: object) -> tuple[ClusterSpec, Plan]:
    stages = len(replicas)
    plan = Plan(partition=[1] * stages, recompute_ratio=[0.0] * stages, reason="a test", replicas=replicas)
    spec = ClusterSpec(
        machines=["cpu"], pipeline=PipelineSpec.model_validate(pipeline), checkpoint=CheckpointSpec(every_steps=5)
    )
    return spec, plan


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "zb-h2", "gpipe"])
def test_any_counts_of_replicas_cannot_deadlock_whoever_begins(schedule: str) -> None:
    for replicas in product((1, 2, 3, 4), repeat=3):
        prove(*job(list(replicas), sync_mode="bsp", schedule=schedule, minibatches_per_step=5))


def test_streams_of_any_counts_of_replicas_cannot_deadlock() -> None:
    for replicas in product((1, 2, 3), repeat=3):
        prove(*job(list(replicas), sync_mode="asp"))


@pytest.mark.parametrize(
    ("schedule", "sync_mode", "message"),
    [
        ("1f1b", "bsp", "rank 0 holds the activations of 3 minibatches; the bound is 2"),
        ("2bw", "asp", "rank 0 holds 3 versions of its weights; the bound is 2"),
    ],
)
def test_a_job_is_held_to_the_bounds_of_its_schedule(
    schedule: str, sync_mode: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator that does not keep what it promises."""
    broken = replace(SCHEDULES[schedule], bsp=deep, asp=one_f_one_b_stream)
    monkeypatch.setitem(SCHEDULES, schedule, broken)
    in_flight = 2 if sync_mode == "bsp" else "auto"
    with pytest.raises(ScheduleError, match=message):
        prove(*job([1, 1, 1], sync_mode=sync_mode, schedule=schedule, minibatches_per_step=6, in_flight=in_flight))


def deep(stage: int, setting: Setting) -> Iterator[Action]:
    return one_f_one_b_flush(stage, replace(setting, in_flight=3))


def test_gradients_need_an_update() -> None:
    with pytest.raises(ScheduleError, match="rank 1 ends without an update of stage 1 after 1B1"):
        validate([rank[: len(rank) - number] for number, rank in enumerate(build("1f1b", "bsp", Setting(2, range(2))))])


def test_weights_from_the_future_are_refused() -> None:
    rank = [Action(0, Kind.FORWARD, 0, 1), Action(0, Kind.BACKWARD, 0), Action(0, Kind.UPDATE, 0)]
    with pytest.raises(ScheduleError, match="rank 0: 0F0 asks for the weights of update 1, but only 0 are done"):
        validate([rank])
