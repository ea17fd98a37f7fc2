"""The benchmarks run: a tiny case of each prints the records it should. What they measure decides nothing here."""

from __future__ import annotations

import json
import threading
from functools import partial

import pytest
import torch

from benchmarks import launch, memory, overhead, pipeline, planner, ranks, sweep, tracing
from benchmarks.contestants import Entry
from benchmarks.layers import Sleeper, bert, encoders, sleepers
from worker.deferred import Deferred, Later
from worker.planner.choose import choose
from worker.planner.costs import Fleet
from worker.planner.scheme import Scheme
from worker.planner.solve import Freedom

RECORD = {
    "case",
    "sync_mode",
    "schedule",
    "stages",
    "minibatches",
    "activation_bytes",
    "efficiency",
    "ratio_to_torch",
    "spread",
}


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    """The records on standard output."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def pipeline_case(name: str, entries: list[Entry]) -> pipeline.Case:
    workload = partial(sleepers, 2, 4096, 1e-4, 1e-4, 1e-4) if name == "sleep" else partial(encoders, 4, 64, 8, 2)
    return pipeline.Case(name, workload, 2, 4096, tuple(entries), repeats=1, deadline=60.0)


@pytest.mark.parametrize("name", ["sleep", "real"])
def test_pipeline_prints_a_record_for_each_contestant(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [*pipeline.bsp(2, 4), *pipeline.asp(2, 6, 2), pipeline.two_versions(2, 8)]
    entries += pipeline.plain(4) if name == "real" else [pipeline.bare(2, 6)]
    monkeypatch.setattr(pipeline, "cases", lambda quick: [pipeline_case(name, entries)])
    assert pipeline.main(["--quick"]) == 0
    records = printed(capsys)
    assert len(records) == len([entry for entry in entries if entry.runtime != "limit"])
    assert all(record.keys() >= RECORD and record["efficiency"] > 0 for record in records)
    assert all(record["ratio_to_torch"] > 0 for record in records)


def test_overhead_prints_a_record_for_each_runtime(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overhead, "SLEEPS", (0.0,))
    assert overhead.main(["--minibatches", "4", "--repeats", "1"]) == 0
    found = [(record["runtime"], record["sync_mode"]) for record in printed(capsys)]
    alone, together = [("vpipe", "bsp"), ("vpipe", "asp")], [("torch", "bsp"), ("vpipe", "bsp"), ("vpipe", "asp")]
    assert found == [("messages", None), *alone, *together, ("bare", "asp")]


def test_only_streams_are_made_longer_and_get_more_time() -> None:
    case = pipeline_case("sleep", [*pipeline.bsp(2, 8, ("1f1b",)), *pipeline.asp(2, 8, 4)])
    longer = pipeline.longer(case, 40)
    assert [entry.minibatches for entry in case.entries] == [8, 8, 8, 8, 4, 8, 8]
    assert [entry.minibatches for entry in longer.entries] == [8, 8, 8, 8, 4, 40, 40]
    assert longer.deadline == pytest.approx(case.deadline * 116 / 52)


def test_a_schedule_that_vpipe_refuses_is_left_out_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    entries = [Entry("limit", "bsp", "none", 4, 4), Entry("vpipe", "bsp", "2bw", 4, 4)]
    assert list(pipeline.measure(pipeline_case("sleep", entries))) == []
    assert "left out: bsp 2bw" in capsys.readouterr().err


def test_memory_prints_a_record_for_each_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = Entry("vpipe", "asp", "1f1b", 6, 1, rule=memory.SGD)
    case = memory.Case("weights", partial(encoders, memory.STAGES, 64, 8, 1), (entry,))
    monkeypatch.setattr(memory, "cases", lambda: [case])
    assert memory.main([]) == 0
    records = printed(capsys)
    assert [record["stage"] for record in records] == list(range(memory.STAGES))
    assert all(record["peak_bytes"] > record["weight_bytes"] > 0 for record in records)


def test_both_runtimes_have_a_footprint_and_bert_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = Entry("torch", "bsp", "1f1b", 4, 4, rule=memory.SGD)
    ours = Entry("vpipe", "bsp", "1f1b", 4, 4, recompute_ratio=1.0, rule=memory.SGD)
    small = memory.Case("buffers", partial(encoders, memory.STAGES, 64, 8, 1), (theirs,))
    cut = memory.Case("activations", partial(bert, 4, 64, 16, 2), (ours,))
    assert len(list(memory.measure(small, theirs))) == len(list(memory.measure(cut, ours))) == memory.STAGES


def test_a_rank_that_hangs_is_ended_and_named() -> None:
    def main(rank: int) -> None:
        if rank:
            threading.Event().wait()

    with pytest.raises(ranks.RankFailure, match="rank 1 was at the deadline in wait"):
        ranks.run(2, main, deadline=1.0)


def test_a_rank_that_fails_says_why_and_ends_the_others() -> None:
    def main(rank: int) -> None:
        if rank:
            raise ValueError("no such layer")

    with pytest.raises(ranks.RankFailure, match="rank 1 failed: ValueError: no such layer"):
        ranks.run(2, main, deadline=30.0)


def test_ranks_give_back_what_they_found() -> None:
    assert ranks.run(2, lambda rank: {"rank": rank}, deadline=30.0) == [{"rank": 0}, {"rank": 1}]


def test_a_sleeper_puts_off_its_weight_gradient_where_the_backward_is_split() -> None:
    sleeper, later = Sleeper(0.0, 0.0, 0.0), Later()
    with Deferred(later):
        output = sleeper(torch.ones(1, 8, requires_grad=True))
    output.backward(torch.ones(1, 8))
    assert len(later) == 2  # the sleep, and the product of the one weight


def test_a_sleeper_does_all_its_backward_at_once_otherwise() -> None:
    sleeper = Sleeper(0.0, 0.0, 0.0)
    sleeper.reset_parameters()
    sleeper(torch.ones(1, 8, requires_grad=True)).backward(torch.ones(1, 8))
    assert sleeper.weight.grad is not None


def test_the_planner_benchmark_prints_its_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert planner.main(["--quick", "--only", "scaling"]) == 0
    assert all(record["cpu_seconds"] >= 0 and record["gap"] >= 0 for record in printed(capsys))
    expected = choose(planner.random_chain(4), Fleet.of(2), [Scheme()], Freedom())
    found = {"step": expected.step_seconds, "busy": [0.0, 0.0], "memory": [0.0, 0.0]}
    assert planner._compared(expected, found)["step_error"] == 0


def test_the_planner_s_choice_is_compared_with_the_best_found() -> None:
    def trial(ratio: str, rate: float, predicted: float, planner: bool = False) -> dict[str, object]:
        numbers = {"samples_per_second": rate, "step_seconds": 8 / rate, "predicted_step_seconds": predicted}
        return {"parameters": {"ratio": ratio}, "state": "succeeded", "planner": planner, **numbers}

    found = sweep.compared([trial("0", 90.0, 1.0, planner=True), trial("1", 100.0, 2.0), trial("2", 50.0, 3.0)])
    assert (found["chosen"], found["best"]) == ({"ratio": "0"}, {"ratio": "1"})
    assert (found["below_best"], found["pairs_in_order"]) == (0.1, 0.6667)


def test_what_a_recorded_window_takes_beyond_the_others() -> None:
    window = [1.5, 1.0, 1.0, 1.0] * 2  # every fourth step takes half as long again
    assert tracing.extra([1.0] * 40, 4) == [0.0] * 4
    assert tracing.extra([2.0] * 4 + [1.0] * 4 + window * 4, 4)[0] == pytest.approx(0.25)


def test_the_launch_benchmark_prints_its_records(testbed: object, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--only", "upload", "--hosts", "1", "2", "--megabytes", "1", "--repeats", "1"]
    assert launch.main(arguments) == 0
    records = printed(capsys)
    assert [record["hosts"] for record in records] == [1, 2]
    assert all(record["ratio_to_scp"] > 0 and record["ratio_to_fewest_hosts"] > 0 for record in records)  # type: ignore[operator]
