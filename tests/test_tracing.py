"""`vpipe trace`: what Perfetto's own trace processor finds in a merged trace is what the ranks did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from tests import harness, ranks, runs, toy
from tests.perfetto.processor import Processor, loaded
from vpipe_cli.app import app
from vpipe_cli.tracing.read import WAITS, RankTrace, Span, read
from vpipe_cli.tracing.sums import shares
from worker import trace
from worker.build import Builder
from worker.errors import NotFinished, UsageError
from worker.feed import Feeder
from worker.metrics import MetricsFile
from worker.schedule.job import minibatches_per_step, rank_actions
from worker.spec.cluster import ClusterSpec, OptimizerSpec, PipelineSpec, RunSpec
from worker.spec.files import RunFiles
from worker.spec.job import Job
from worker.torch_profile import TorchProfile
from worker.trace import Stopwatch

STEPS, PER_STEP = 6, 6


def job() -> Job:
    spec = ClusterSpec(
        machines=["cpu*3"],
        pipeline=PipelineSpec(sync_mode="bsp", minibatches_per_step=PER_STEP),
        optimizer=OptimizerSpec(clip_grad_norm=1.0),
        run=RunSpec(steps=STEPS, stall_timeout=20.0),
    )
    return harness.job_of(spec, [2, 2, 2], recompute_ratio=0.5)


def train(the_job: Job, files: RunFiles, folder: Path, rank: int) -> None:
    """A rank that records all its steps but the first, and its metrics."""
    ranks.join(rank, 3, folder)
    waiting, source = Stopwatch(), toy.Data()
    builder = Builder(the_job, toy.model(), source.signature, rank, torch.device("cpu"))
    feed = Feeder(source, minibatches_per_step(the_job.spec), builder.device, waiting) if rank == 0 else None
    metrics = MetricsFile(files.metrics(rank), STEPS)
    also = TorchProfile(files.torch_trace(rank))
    trace.open_at(files.trace(rank), {"offset_ns": 0, "offset_error_ns": 0}, STEPS, STEPS, also)
    builder.executor(feed, waiting, metrics.write).run(builder.actions())
    trace.close()
    metrics.close()
    dist.barrier()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """The files of a run of three ranks that was recorded."""
    home = tmp_path_factory.mktemp("home")
    made = runs.make_run(home, ranks=3, steps=STEPS)
    the_job, folder = job(), tmp_path_factory.mktemp("meeting")
    for rank in range(3):
        made.metrics(rank).unlink(missing_ok=True)
    ranks.run(3, folder, lambda rank: train(the_job, made, folder, rank))
    return made


@pytest.fixture(scope="module")
def processor(files: RunFiles) -> Iterator[Processor]:
    """Perfetto's trace processor with the run's trace."""
    home = files.folder.parent.parent
    command = ["trace", files.folder.name, "--torch-profiler", "-o", "json"]
    result = CliRunner().invoke(app, command, env={"VPIPE_HOME": str(home)})
    assert result.exit_code == 0, result.output
    with loaded(Path(json.loads(result.stdout)["file"]).read_bytes()) as it:
        yield it


def test_every_receive_follows_its_send(processor: Processor) -> None:
    ends = "from flow join slice o on o.id = flow.slice_out join slice i on i.id = flow.slice_in"
    ((arrows,),) = processor.query(f"select count(*) as n {ends} where o.category = 'send' and i.category = 'arrival'")
    ((messages,),) = processor.query("select count(*) as n from slice where category = 'receive'")
    assert arrows == messages > 0
    assert processor.query(f"select count(*) as n {ends} where i.ts + i.dur < o.ts") == [(0,)]


@pytest.mark.parametrize("rank", range(3))
def test_the_order_of_actions_is_the_schedule_s(rank: int, processor: Processor) -> None:
    kinds = "('forward', 'backward', 'update')"
    found = processor.query(
        "select slice.name as name from slice join thread_track on thread_track.id = slice.track_id "
        f"join thread using (utid) where thread.tid = {rank} and category in {kinds} order by ts"
    )
    the_job = job()
    actions = rank_actions(the_job.spec, the_job.plan, rank)
    expected = [f"{action.kind.value} {action.minibatch}" for action in actions if action.minibatch >= PER_STEP]
    assert [name for (name,) in found] == expected


@pytest.mark.parametrize("rank", range(3))
def test_idle_time_is_that_of_the_metrics(rank: int, processor: Processor, files: RunFiles) -> None:
    ((nanoseconds,),) = processor.query(
        "select sum(dur) as n from slice join thread_track on thread_track.id = slice.track_id "
        f"join thread using (utid) where thread.tid = {rank} and category in {tuple(sorted(WAITS))}"
    )
    steps = [json.loads(line) for line in files.metrics(rank).read_text().splitlines()]
    waited = sum(step["wait"] for step in steps if step["step"] > 1)
    assert nanoseconds / 1e9 == pytest.approx(waited, rel=0.01, abs=1e-3)


@pytest.mark.parametrize("rank", range(3))
def test_torch_s_own_operators_lie_inside_the_actions(rank: int, processor: Processor) -> None:
    tracks = "join thread_track on thread_track.id = slice.track_id join thread using (utid) join process using (upid)"
    chosen = f"from slice {tracks} where pid = {rank}"
    ((first, last),) = processor.query(
        f"select min(ts) as a, max(ts + dur) as b {chosen} and category in ('forward', 'backward', 'update')"
    )
    ((operators, early, late),) = processor.query(
        f"select count(*) as n, min(ts) as a, max(ts + dur) as b {chosen} and slice.name = 'aten::linear'"
    )
    assert operators >= (STEPS - 1) * PER_STEP
    assert first - 10**6 <= early and late <= last + 10**6


def test_a_run_that_torch_did_not_profile_says_how_to(files: RunFiles, tmp_path: Path) -> None:
    other = runs.make_run(tmp_path, ranks=3, steps=STEPS)
    other.trace(0).parent.mkdir()
    other.trace(0).write_text(files.trace(0).read_text())
    result = CliRunner().invoke(app, ["trace", "--torch-profiler"], env={"VPIPE_HOME": str(tmp_path)})
    assert isinstance(result.exception, NotFinished) and "trace.torch=true" in str(result.exception.hint)


def test_a_torn_line_is_passed_over(files: RunFiles) -> None:
    run, the_job = runs.run(files), job()
    before = read(run, the_job)
    with files.trace(1).open("a") as file:
        file.write('["forward", "", 12')
    assert read(run, the_job) == before


def test_a_run_without_spans_says_so(tmp_path: Path) -> None:
    files = runs.make_run(tmp_path)
    with pytest.raises(NotFinished, match="has recorded no step yet"):
        read(runs.run(files), runs.job())


def test_a_file_that_cannot_be_written_is_named(files: RunFiles) -> None:
    home = files.folder.parent.parent
    command = ["trace", files.folder.name, "--file", "/proc/none/trace.json"]
    result = CliRunner().invoke(app, command, env={"VPIPE_HOME": str(home)})
    assert isinstance(result.exception, UsageError) and "/proc/none/trace.json" in result.exception.message


def test_shares_leave_out_what_is_inside() -> None:
    def span(kind: str, begin: int, end: int) -> Span:
        return Span(kind, "", begin * 10**9, end * 10**9, 0, 0, 0)

    spans = [span("forward", 0, 10), span("data", 0, 1), span("receive", 1, 4), span("send", 8, 10)]
    own = shares(RankTrace(0, "here", 0.0, spans))
    assert (own.seconds, own.compute, own.idle, own.data, own.send) == (10, 4, 3, 1, 2)
