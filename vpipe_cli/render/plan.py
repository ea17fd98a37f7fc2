"""A plan as text, as a document, and as a picture of its timeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import inf
from pathlib import Path

from vpipe_cli import timeline
from vpipe_cli.planning import Planned, Report
from vpipe_cli.render import text
from worker.planner.choose import Chosen
from worker.schedule.walk import Span


def document(report: Report) -> str:
    """One JSON document."""
    plan, asked = report.plan, report.problem
    per_minibatch = report.step_seconds / (1 if report.cost_model == "pipedream" else plan.scheme.minibatches)
    return json.dumps(
        {
            "schema": 1,
            "cost_model": report.cost_model,
            "devices": asked.fleet.devices,
            "stages": len(plan.stages),
            **_choices(plan),
            "predicted": {
                "step_seconds": report.step_seconds,
                "lower_bound_seconds": report.lower_bound,
                "gap": report.step_seconds / report.lower_bound - 1 if report.lower_bound else 0.0,
                "bottleneck_seconds": plan.bottleneck if report.cost_model == "vpipe" else report.step_seconds,
                "samples_per_second": asked.samples / per_minibatch if asked.samples and per_minibatch else None,
                "stages": [
                    {
                        "stage": index,
                        "layers": stage.end - stage.start,
                        "ranks": stage.replicas,
                        "seconds": stage.cost.seconds,
                        "memory_bytes": round(stage.cost.memory),
                        "idle_share": idle,
                    }
                    for index, (stage, idle) in enumerate(zip(plan.stages, plan.timing.idle, strict=True))
                ],
            },
            "reason": report.notes,
            "compare": [_compared(each) for each in report.others],
        }
    )


def _choices(plan: Chosen) -> dict[str, object]:
    return {
        "partition": plan.partition,
        "replicas": plan.replicas,
        "recompute_ratio": plan.recompute_ratio,
        "schedule": plan.scheme.schedule,
        "sync_mode": plan.scheme.sync_mode,
        "minibatches_per_step": plan.scheme.minibatches,
        "in_flight": plan.scheme.in_flight or plan.scheme.held(0, sum(plan.replicas), plan.replicas[0]),
    }


def _compared(each: Planned) -> dict[str, object]:
    plan = each.plan
    return {
        "name": each.name,
        **_choices(plan),
        "minibatch_seconds": plan.step_seconds / plan.scheme.minibatches,
        "memory_bytes": round(max(stage.cost.memory for stage in plan.stages)),
        "fits": each.fits,
    }


def describe(report: Report, width: int = 100) -> str:
    """The table of stages, the predicted step, why, and the timeline."""
    plan, asked = report.plan, report.problem
    mode = f"{plan.scheme.schedule} under {plan.scheme.sync_mode}"
    many = f", {plan.scheme.minibatches} minibatches a step" if plan.scheme.minibatches > 1 else ""
    counts = f"{len(asked.profile.layers)} layers in {len(plan.stages)} stages on {asked.fleet.devices} devices"
    lines = [f"{mode}{many}: {counts}", ""]
    lines.append(f"{'stage':>5} {'layers':>13} {'ranks':>5} {'recompute':>9} {'busy':>9} {'idle':>5} {'memory':>9}")
    ratios = plan.recompute_ratio
    for index, stage in enumerate(plan.stages):
        layers = f"{stage.start}-{stage.end - 1} ({stage.end - stage.start})"
        lines.append(
            f"{index:>5} {layers:>13} {stage.replicas:>5} {ratios[index]:>9.3g} {text.span(stage.cost.seconds):>9} "
            f"{text.percent(plan.timing.idle[index]):>5} {text.size(stage.cost.memory):>9}"
        )
    unit = "minibatch" if report.cost_model == "pipedream" or plan.scheme.minibatches == 1 else "step"
    gap = report.step_seconds / report.lower_bound - 1 if report.lower_bound else 0.0
    bound = f"no plan can be below {text.span(report.lower_bound)} (gap {gap:.1%})"
    lines += ["", f"predicted {text.span(report.step_seconds)} a {unit}; {bound}"]
    if asked.samples and report.cost_model == "vpipe":
        lines.append(f"          {text.rate(asked.samples * plan.scheme.minibatches / report.step_seconds)} samples/s")
    if asked.limit < inf:
        most = text.size(max(stage.cost.memory for stage in plan.stages))
        lines.append(f"memory    {text.size(asked.limit)} a device, {most} used at most")
    lines += [f"note      {note}" if index else f"why       {note}" for index, note in enumerate(report.notes)]
    depth = f" in_flight={plan.scheme.in_flight}" if plan.scheme.in_flight else ""
    use = f"partition={plan.partition} replicas={plan.replicas} recompute_ratio={ratios}".replace(", ", ",")
    lines.append(f"to use    {use}{depth}")
    if report.others:
        lines += ["", *_table(report.others)]
    if plan.timing.spans:
        lines += ["", timeline.text(_part(plan), width)]
    return "\n".join(lines)


def _table(others: Sequence[Planned]) -> list[str]:
    lines = [f"{'plan':<11} {'a minibatch':>11} {'memory':>9} {'fits':>4}  partition"]
    for each in others:
        per_minibatch = text.span(each.plan.step_seconds / each.plan.scheme.minibatches)
        memory = text.size(max(stage.cost.memory for stage in each.plan.stages))
        shape = ",".join(
            f"{layers}x{count}" if count > 1 else str(layers)
            for layers, count in zip(each.plan.partition, each.plan.replicas, strict=True)
        )
        lines.append(f"{each.name:<11} {per_minibatch:>11} {memory:>9} {'yes' if each.fits else 'no':>4}  {shape}")
    return lines


def save(report: Report, path: Path) -> None:
    """Draw the timeline. Raises UsageError where it cannot be written, or there is none."""
    from worker.errors import UsageError

    if not report.plan.timing.spans:
        raise UsageError("the schedule is too long to draw", "plan fewer devices or minibatches for a picture")
    title = f"{report.plan.scheme.schedule}, partition {report.plan.partition}: {text.span(report.step_seconds)} a step"
    timeline.save(_part(report.plan), path, "png", title)


def _part(plan: Chosen) -> list[list[Span]]:
    """The timeline as far as it fits on a line: the first minibatches that fill the pipeline, and some more."""
    spans = plan.timing.spans
    most = 3 * plan.scheme.minibatches if plan.scheme.flushes else 3 * len(spans) + 4
    newest = min(most, plan.scheme.minibatches if plan.scheme.flushes else most)
    return [[span for span in each if span.action.minibatch < newest] for each in spans]
