"""What a trace records of a pipeline: every action in its order, every message with both of its ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import harness, ranks, toy
from worker import clocks, trace
from worker.schedule.job import rank_actions
from worker.spec.cluster import ClusterSpec, OptimizerSpec, PipelineSpec, RunSpec
from worker.spec.job import Job

KINDS = {"forward": "F", "backward": "B", "update": "U"}
STEPS = 5


def job(sync_mode: str, recompute: float = 0.0) -> Job:
    per_step = 4 if sync_mode == "bsp" else None
    spec = ClusterSpec(
        machines=["cpu*2"],
        pipeline=PipelineSpec(sync_mode=sync_mode, minibatches_per_step=per_step),
        optimizer=OptimizerSpec(clip_grad_norm=1.0),
        run=RunSpec(steps=STEPS, stall_timeout=20.0),
    )
    return harness.job_of(spec, [3, 3], recompute)


def spans(job: Job, folder: Path, every: int = 100, window: int = 100) -> list[list[trace.Span]]:
    """The recorded spans of each rank."""

    def main(rank: int) -> None:
        trace.open_at(folder / f"trace-{rank}", {"rank": rank}, every, window)
        harness._rank(job, toy.model(), toy.Data(), folder, None, rank)
        trace.close()

    ranks.run(2, folder, main)
    return [[tuple(span) for span in lines(folder / f"trace-{rank}")[1:]] for rank in range(2)]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
def test_actions_are_recorded_in_the_schedule_s_order(sync_mode: str, tmp_path: Path) -> None:
    the_job = job(sync_mode)
    for rank, recorded in enumerate(spans(the_job, tmp_path)):
        own = [(KINDS[kind], minibatch) for kind, _, _, _, _, minibatch, _ in recorded if kind in KINDS]
        first = 4 if sync_mode == "bsp" else 1  # minibatches of step 1, which is not recorded
        actions = [(a.kind.value, a.minibatch) for a in rank_actions(the_job.spec, the_job.plan, rank)]
        assert own == [each for each in actions if each[1] >= first]


def test_a_backward_has_the_version_of_its_forward(tmp_path: Path) -> None:
    recorded = spans(job("asp"), tmp_path)[0]
    versions = {(kind, minibatch): version for kind, _, _, _, _, minibatch, version in recorded}
    forwards = {minibatch: version for (kind, minibatch), version in versions.items() if kind == "forward"}
    assert forwards == {minibatch: versions["backward", minibatch] for minibatch in forwards}
    assert list(forwards.values()) == [0, 1, 2, 3]  # two in flight: one update behind


def test_every_message_that_arrives_was_sent_before(tmp_path: Path) -> None:
    recorded = spans(job("bsp"), tmp_path)
    sent = {what: begin for each in recorded for kind, what, begin, *_ in each if kind == "send"}
    arrived = {what: end for each in recorded for kind, what, _, end, *_ in each if kind == "receive"}
    assert arrived.keys() == sent.keys() and arrived
    assert all(sent[what] < end for what, end in arrived.items())


def test_spans_of_a_rank_nest(tmp_path: Path) -> None:
    for recorded in spans(job("bsp", recompute=1.0), tmp_path):
        assert {"receive", "recompute", "send"} <= {kind for kind, *_ in recorded}
        open_until: list[int] = []
        for _, _, begin, end, *_ in sorted(recorded, key=lambda span: (span[2], -span[3])):
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1]
            open_until.append(end)


def test_only_some_steps_are_recorded(tmp_path: Path) -> None:
    for recorded in spans(job("bsp"), tmp_path, every=2, window=1):
        assert {minibatch // 4 + 1 for _, _, _, _, _, minibatch, _ in recorded if minibatch >= 0} == {2, 4}


def test_nothing_is_recorded_unless_asked_for() -> None:
    trace.begin(3, 0)
    with trace.span("forward"):
        pass
    assert trace._now.spans == []


def test_clocks_of_machines_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that believe to be on machines of their own, which in truth share a clock."""

    def main(rank: int) -> tuple[int, int]:
        ranks.join(rank, 3, tmp_path)
        monkeypatch.setattr(clocks, "machine", lambda: bytes([rank]) * 32)
        return clocks.offset_to_first(rank, 3)

    first, *others = ranks.run(3, tmp_path, main)
    assert first == (0, 0)
    assert all(0 < error < 1e9 and abs(offset) <= error for offset, error in others)
