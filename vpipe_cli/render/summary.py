"""How a run ended, on one screen: its numbers if it succeeded, who failed first and why if it did not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vpipe_cli.render import text
from vpipe_cli.render.live import state_text
from vpipe_cli.runs.outcome import Failure, Outcome
from vpipe_cli.sanitize import clean
from worker.spec.records import Result, StageResult

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text


def summary(ended: Outcome, picture: str = "", height: int | None = None) -> RenderableType:
    """The end of a run. ``picture`` is loss.png's path or why there is none; ``height`` what a screen can hold."""
    if ended.state == "succeeded" and ended.result is not None:
        return _success(ended, ended.result, picture)
    if ended.failure is not None:
        return _failure(ended, ended.failure, height)
    return _other(ended, picture)


def left(run: str, asked_to_stop: bool = False) -> RenderableType:
    """What to do after having left a run that goes on."""
    how = "was asked to stop and has not ended yet" if asked_to_stop else "goes on without you"
    rows = [("vpipe logs -f", "follow its logs"), ("vpipe status", "see how it stands"), ("vpipe stop", "end it")]
    width = max(len(command) for command, _ in rows)
    return _lines(f"run {run} {how}", *(f"  {command:{width}} {run}   {what}" for command, what in rows))


def _success(ended: Outcome, result: Result, picture: str) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    rate = f"{text.rate(result.samples_per_second)} samples/s"
    headline = Text.assemble(
        "run ",
        ended.run,
        " ",
        state_text(ended.state),
        f": {result.steps} steps in {text.clock(result.seconds)}, {rate}",
    )
    baseline = f"guessing by how frequent each token is gives {text.loss(result.baseline_loss)}"
    loss = Text.assemble("  loss     ", (text.loss(result.loss), "bold"), f"   ({baseline})")
    facts = [*_prediction(result), f"  weights  {result.weights_sha256}", f"  folder   {ended.folder}"]
    if result.records_left_out:
        facts.insert(-2, f"  data     {result.records_left_out} left out as wrong (on_bad_record: skip)")
    if picture:
        facts.append(f"  picture  {picture}")
    return Group(headline, loss, "", _stages(result.stages), "", _lines(*facts))


def _stages(stages: Sequence[StageResult]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 0, 0, 2), header_style="dim")
    for name in ("stage", "rank", "layers", "busy per minibatch", "idle", "peak memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in stages:
        busy, memory = text.span(stage.stage_seconds), text.size(stage.peak_memory_bytes)
        cells = [str(stage.stage), str(stage.rank), str(stage.layers), busy, text.percent(stage.idle_share), memory]
        table.add_row(*map(Text, cells))
    return table


def _prediction(result: Result) -> list[str]:
    """What the planner expected beside what was, where it had layers measured."""
    if not (result.predicted_step_seconds and result.step_seconds):
        return []
    step = text.error(result.predicted_step_seconds, result.step_seconds)
    pairs = [(s.predicted_seconds, s.stage_seconds) for s in result.stages if s.predicted_seconds]
    memory = [(s.predicted_memory_bytes, s.peak_memory_bytes) for s in result.stages if s.predicted_memory_bytes]
    worst = [
        max((text.error(*pair) for pair in each), key=lambda e: abs(float(e[:-1])), default="-")
        for each in (pairs, memory)
    ]
    steps = f"{text.span(result.predicted_step_seconds)} a step, was {text.span(result.step_seconds)} ({step})"
    return [f"  planned  {steps}; stages off by up to {worst[0]}, their memory by {worst[1]}"]


def _failure(ended: Outcome, failure: Failure, height: int | None) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    when = "before the first step" if failure.step is None else f"at step {failure.step}"
    where = f"rank {failure.rank} ({clean(failure.host)}, stage {failure.stage})"
    headline = Text.assemble(
        "run ", ended.run, " ", (f"{ended.state.upper()}", "bold red"), f" {when}: {where} {clean(failure.cause)}"
    )
    below = [
        *_consequences(ended, failure),
        f"  log   {failure.log}",
        f"  next  vpipe logs {ended.run} --rank {failure.rank}",
    ]
    room = len(failure.last_lines) if height is None else max(5, height - len(below) - 8)
    kept = failure.last_lines[-room:]
    said = [Text(f"  | {clean(line)}", no_wrap=True, overflow="ellipsis") for line in kept]
    title = f"  the last lines of rank {failure.rank}:" if kept else f"  rank {failure.rank} said nothing"
    return Group(headline, "", _lines(title), *said, "", _lines(*below))


def _consequences(ended: Outcome, failure: Failure) -> list[str]:
    """One line for all other ranks, which ended because the first one did."""
    others = [rank for rank in ended.ranks if rank.rank != failure.rank]
    if not others:
        return []
    ended_by_us = [rank.rank for rank in others if rank.state == "stopped"]
    failed = [rank.rank for rank in others if rank.state == "failed"]
    parts = []
    if failed:
        parts.append(f"rank {text.numbers(failed)} failed after it")
    if ended_by_us:
        parts.append(f"vpipe ended rank {text.numbers(ended_by_us)}")
    return [f"  then  {', '.join(parts)}"] if parts else []


def _other(ended: Outcome, picture: str) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    headline = Text.assemble("run ", ended.run, " ", state_text(ended.state), f" at step {ended.step} of {ended.steps}")
    facts = [f"  folder   {ended.folder}"]
    if picture:
        facts.append(f"  picture  {picture}")
    if ended.state in ("failed", "lost"):
        facts += ["  it ended without a word of why; what its supervisor said is in", f"  {ended.hostd_log}"]
    return Group(headline, _lines(*facts))


def _lines(*lines: str) -> Text:
    """Lines that the terminal may fold, so that a path can be copied whole."""
    from rich.text import Text

    return Text("\n".join(lines))
