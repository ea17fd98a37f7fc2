"""python -m benchmarks.planner: how fast plans are found, and whether they come true; as JSON lines.

Cases: ``scaling`` (time to plan, by layers and devices), ``prediction`` (step time and memory, predicted and measured,
over stages, ratios and sync modes), ``choice`` (auto beside every partition and the even split, on a model with a large
head). Ranks are processes of this machine; where there are more of them than cores, layers sleep in place of computing.
Timings mean something on an idle machine only.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from statistics import median
from typing import Any

import torch

from benchmarks import ranks
from benchmarks.layers import Workload, bert, sleepers
from worker.build import Builder
from worker.feed import Feeder
from worker.metrics import Totals
from worker.planner.choose import Chosen, choose, evaluate
from worker.planner.costs import Fleet
from worker.planner.scheme import Scheme
from worker.planner.solve import Freedom
from worker.profiler import measure, measure_link
from worker.profiler.layers import Measured
from worker.spec.cluster import ClusterSpec
from worker.spec.job import Job, Placement, Plan
from worker.spec.profile import LayerProfile, LinkProfile, Profile
from worker.spec.records import StepMetrics
from worker.trace import Stopwatch

DEADLINE = 240.0
Record = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """What is trained, and by how many ranks at most side by side."""

    name: str
    workload: Callable[[], Workload]
    is_emulated: bool = False


def models(quick: bool) -> list[Model]:
    """A BERT for as many ranks as there are cores, and a sleeping model for more."""
    size = (2, 128, 64, 4) if quick else (6, 256, 128, 8)
    seconds = 0.002 if quick else 0.010
    return [
        Model("bert", partial(bert, *size)),
        Model("sleep", partial(sleepers, 4, 65536, seconds, seconds, seconds), is_emulated=True),
    ]


def scaling(quick: bool) -> Iterator[Record]:
    """Seconds of CPU to find a plan, for growing chains; the memory is none, and such that stages must recompute."""
    sizes = [(50, 8, True), (50, 8, False)]
    if not quick:
        sizes = [(125, 16, True), (250, 32, True), (500, 64, True), (1000, 128, True)]
        sizes += [(25, 8, False), (50, 16, False), (100, 32, False), (200, 64, False)]
    for layers, devices, is_straight in sizes:
        profile = random_chain(layers)
        for scheme in (Scheme(), Scheme("1f1b", "bsp", 2 * devices)):
            for limit in (inf, _tight(profile, devices, scheme)):
                fleet = Fleet.of(devices, limit, [LinkProfile(forward=1e10, backward=1e10)])
                started = time.process_time()
                chosen = choose(profile, fleet, [scheme], Freedom(is_straight=is_straight))
                yield {
                    "case": "scaling",
                    "layers": layers,
                    "devices": devices,
                    "replicas": "one" if is_straight else "free",
                    "sync_mode": scheme.sync_mode,
                    "memory": "free" if limit == inf else "tight",
                    "cpu_seconds": round(time.process_time() - started, 3),
                    "gap": round(chosen.gap, 4),
                }


def _tight(profile: Profile, devices: int, scheme: Scheme) -> float:
    """Bytes a device at which the early stages of a straight pipeline must recompute about half."""
    even = len(profile.layers) // devices
    layer = profile.layers[0]
    held = scheme.held(0, devices, 1)
    static = even * (layer.parameter_bytes * scheme.versions(held) + layer.gradient_bytes + layer.optimizer_bytes)
    return 1.5 * (static + held * even * layer.activation_bytes / 2)


def random_chain(layers: int) -> Profile:
    """Layers of 1.5 to 4.5 ms and like sizes; always the same."""
    draw = random.Random(1)
    made = []
    for index in range(layers):
        seconds = draw.uniform(0.5e-3, 1.5e-3)
        sizes = {"activation_bytes": int(seconds * 1e10), "output_bytes": 10**6, "parameter_bytes": 4 * 10**6}
        times = {"forward": seconds, "input_grad": seconds, "weight_grad": seconds, "recompute": seconds}
        made.append(
            LayerProfile.model_validate(
                {"name": str(index), **times, **sizes, "gradient_bytes": 4 * 10**6, "optimizer_bytes": 8 * 10**6}
            )
        )
    return Profile(layers=made)


def prediction(model: Model, quick: bool) -> Iterator[Record]:
    """Step and stages as predicted and as measured: stages, ratios, ASP and BSP."""
    stages = (2,) if quick else (2, 3, 4) if model.is_emulated else (2,)
    ratios = (0.0, 1.0) if quick else (0.0, 0.5, 1.0)
    for count in stages:
        profile = profiled(model, count, quick)
        for mode in ("asp", "bsp"):
            scheme = Scheme("1f1b", mode, 8 if mode == "bsp" else 1)
            fleet = Fleet.of(count, links=profile.links)
            partition = choose(profile, fleet, [scheme], Freedom()).partition
            for ratio in ratios:
                expected = evaluate(profile, fleet, scheme, partition, [1] * count, [ratio] * count)
                yield {
                    "case": "prediction",
                    "model": model.name,
                    "stages": count,
                    "sync_mode": mode,
                    "recompute_ratio": ratio,
                    "partition": partition,
                    **_compared(expected, trained(model, expected, quick)),
                }


def _compared(expected: Chosen, found: Record) -> Record:
    memory = [stage.cost.memory for stage in expected.stages]
    busy = [stage.cost.seconds for stage in expected.stages]
    return {
        "step_seconds": round(found["step"], 6),
        "predicted_step_seconds": round(expected.step_seconds, 6),
        "step_error": round(found["step"] / expected.step_seconds - 1, 4),
        "stage_errors": [round(a / b - 1, 4) for a, b in zip(found["busy"], busy, strict=True)],
        "memory_errors": [round(a / b - 1, 4) for a, b in zip(found["memory"], memory, strict=True)],
    }


def choice(model: Model, quick: bool) -> Iterator[Record]:
    """Every partition of a model with a large head in two stages, run; beside them what auto takes, and the even split.

    ``auto_over_best`` is the step of auto over the best of all; ``even_over_auto`` that of the even split over auto's.
    """
    workload = model.workload()
    layers = len(workload.model.layers)
    scheme, count = Scheme("1f1b", "asp", 1), 2
    profile = profiled(model, count, quick)
    fleet = Fleet.of(count, links=profile.links)
    auto = choose(profile, fleet, [scheme], Freedom()).partition
    even = [layers // 2, layers - layers // 2]
    cuts = [[cut, layers - cut] for cut in range(1, layers)]
    cuts = cuts[:: max(1, len(cuts) // 3)] if quick else cuts
    steps: dict[tuple[int, ...], list[float]] = {}
    for _ in range(1 if quick else 3):  # interleaved, so that a slow minute slows all
        for partition in {tuple(each) for each in (*cuts, auto, even)}:
            expected = evaluate(profile, fleet, scheme, partition, [1, 1], [0.0, 0.0])
            steps.setdefault(partition, []).append(trained(model, expected, quick)["step"])
    times = {partition: median(values) for partition, values in steps.items()}
    best = min(times, key=times.__getitem__)
    yield {
        "case": "choice",
        "model": model.name,
        "partitions": len(times),
        "auto": auto,
        "best": list(best),
        "auto_over_best": round(times[tuple(auto)] / times[best], 4),
        "even_over_auto": round(times[tuple(even)] / times[tuple(auto)], 4),
    }


def uneven(quick: bool) -> Model:
    """A BERT whose vocabulary makes its last layer as dear as several others."""
    size = (2, 64, 64, 4) if quick else (4, 128, 128, 8)
    return Model("bert with a large head", partial(_large_head, *size))


def _large_head(layers: int, width: int, length: int, batch: int) -> Workload:
    from benchmarks.layers import Same
    from worker import models as families
    from worker.spec.cluster import BertSpec, DataSpec

    data = DataSpec(sequence_length=length, minibatch_size=batch, vocab_size=16384)
    model = families.bert.build(BertSpec(hidden_size=width, num_layers=layers, num_heads=width // 64 or 1), data)
    ids = torch.randint(data.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "segment_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids).bool()}
    return Workload(model, Same(inputs, ids, ids.numel()), 2 * layers)


def spec_of(steps: int, scheme: Scheme, count: int) -> ClusterSpec:
    """A job of so many ranks; its model and data are the workload's, whatever it says."""
    pipeline: Record = {"stages": count, "schedule": scheme.schedule, "sync_mode": scheme.sync_mode}
    if scheme.flushes:
        pipeline["minibatches_per_step"] = scheme.minibatches
    run = {"steps": steps, "threads": 1}
    return ClusterSpec.model_validate({"machines": [f"cpu*{count}"], "pipeline": pipeline, "run": run})


def profiled(model: Model, count: int, quick: bool) -> Profile:
    """The layers of a model, measured by as many processes side by side as will run it."""
    workload = model.workload()
    repeats = 2 if quick else 15

    def main(rank: int) -> Record:
        import torch.distributed as dist

        spec = spec_of(1, Scheme("1f1b", "bsp", 1), 1)
        found: Measured = measure(
            spec, workload.model, workload.source, torch.device("cpu"), repeats, lambda _: dist.barrier()
        )
        dist.barrier()
        link = measure_link(rank)
        return {
            "layers": [layer.model_dump() for layer in found.layers],
            "base": found.base_bytes,
            "copy": found.copy_rate,
            "link": link.model_dump() if link else None,
        }

    found = ranks.run(count, main, DEADLINE)[0]
    return Profile(
        layers=[LayerProfile.model_validate(layer) for layer in found["layers"]],
        links=[LinkProfile.model_validate(found["link"])] if found["link"] else [],
        base_bytes=found["base"],
        copy_rate=found["copy"],
        repeats=repeats,
    )


def trained(model: Model, expected: Chosen, quick: bool) -> Record:
    """A run of a plan: seconds of a step, and for each rank its busy seconds per minibatch and its peak bytes."""
    workload, scheme, count = model.workload(), expected.scheme, len(expected.stages)
    steps = (8 if quick else 60) if scheme.flushes is False else (3 if quick else 10)
    plan = Plan(
        partition=expected.partition,
        recompute_ratio=expected.recompute_ratio,
        reason="to be measured",
        replicas=[1] * count,
    )
    spec = spec_of(steps, scheme, count)
    places = [Placement(rank=r, stage=r, host="localhost", device="cpu", threads=1) for r in range(count)]
    job = Job(run="benchmark", spec=spec, plan=plan, ranks=places)

    def main(rank: int) -> Record:
        totals = Totals(tail=1)
        waiting = Stopwatch()
        builder = Builder(job, workload.model, workload.source.signature, rank, torch.device("cpu"))
        feed = Feeder(workload.source, scheme.minibatches, torch.device("cpu"), waiting) if rank == 0 else None
        times: list[float] = []

        def report(step: StepMetrics) -> None:
            totals.add(step)
            times.append(step.seconds)

        builder.executor(feed, waiting, report).run(builder.actions())
        result = totals.stage_result(rank, rank, 1)
        third = times[len(times) // 3 :]
        return {"step": sum(third) / len(third), "busy": result.stage_seconds, "memory": result.peak_memory_bytes}

    found = ranks.run(count, main, DEADLINE)
    return {
        "step": median(rank["step"] for rank in found),
        "busy": [rank["busy"] for rank in found],
        "memory": [rank["memory"] for rank in found],
    }


def records(only: str, quick: bool) -> Iterator[Record]:
    """Those of all cases whose name begins with ``only``, as they come; a summary of predictions last."""
    if "scaling".startswith(only):
        yield from scaling(quick)
    found = []
    if "prediction".startswith(only):
        for model in models(quick):
            for record in prediction(model, quick):
                found.append(record)
                yield record
        yield summary(found)
    if "choice".startswith(only):
        yield from choice(uneven(quick), quick)


def summary(found: Sequence[Record]) -> Record:
    """Median and worst error over all configurations."""
    steps = [abs(record["step_error"]) for record in found]
    memory = [abs(error) for record in found for error in record["memory_errors"]]
    return {
        "case": "prediction summary",
        "configurations": len(found),
        "median_step_error": median(steps),
        "worst_step_error": max(steps),
        "median_memory_error": median(memory),
        "worst_memory_error": max(memory),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the records as they come; 1 if a measurement failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner")
    parser.add_argument("--only", default="", metavar="CASE", help="scaling, prediction or choice")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, not how well")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        for record in records(chosen.only, chosen.quick):
            print(json.dumps(record), flush=True)
    except ranks.RankFailure as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
