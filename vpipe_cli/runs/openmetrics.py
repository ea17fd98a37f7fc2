"""The numbers of a run as OpenMetrics text, for the textfile collector of Prometheus' node exporter."""

from __future__ import annotations

from collections.abc import Iterator

from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.metrics import Meter, RankProgress
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.store import Run

FAMILIES = {
    "vpipe_run_info": "what the run is",
    "vpipe_step": "steps done",
    "vpipe_steps": "steps asked for",
    "vpipe_loss": "mean loss of the last steps",
    "vpipe_samples_per_second": "throughput of the last steps",
    "vpipe_rank_forward_seconds": "forward of a minibatch",
    "vpipe_rank_backward_seconds": "backward of a minibatch, recomputation included",
    "vpipe_rank_update_seconds": "update, per minibatch",
    "vpipe_rank_idle_ratio": "share of the wall time in which the rank is not busy",
    "vpipe_rank_in_flight": "most minibatches at once between forward and backward, lately",
    "vpipe_rank_versions": "most versions of its weights held at once, lately",
    "vpipe_rank_peak_memory_bytes": "peak of the rank's process on a CPU, of what is allocated on a GPU",
}

Sample = tuple[str, dict[str, str], float]


def text(run: Run) -> str:
    """The run as it stands now. Raises NotFinished if it has no ranks yet."""
    samples = list(_samples(run))
    lines = []
    for family, described in FAMILIES.items():
        found = [sample for sample in samples if sample[0] == family]
        if found:
            lines += [f"# HELP {family} {described}", f"# TYPE {family} gauge"]
            lines += [f"{name}{{{_labels(labels)}}} {value!r}" for name, labels, value in found]
    return "\n".join([*lines, "# EOF", ""])


def _samples(run: Run) -> Iterator[Sample]:
    meter = Meter(run.files, placed_job(run))
    meter.update()
    now, one = meter.progress(), {"run": run.id}
    yield "vpipe_run_info", {**one, "name": run.name, "state": standing(run).state}, 1.0
    yield "vpipe_step", one, float(now.step)
    yield "vpipe_steps", one, float(now.steps)
    for name, value in (("vpipe_loss", now.loss), ("vpipe_samples_per_second", now.samples_per_second)):
        if value is not None:
            yield name, one, value
    for rank in now.ranks:
        yield from _of_rank(one, rank)


def _of_rank(one: dict[str, str], rank: RankProgress) -> Iterator[Sample]:
    if (timing := rank.timing) is None:
        return
    placed = rank.placement
    labels = {**one, "rank": str(placed.rank), "stage": str(placed.stage), "host": placed.host, "device": placed.device}
    for part in ("forward", "backward", "update"):
        yield f"vpipe_rank_{part}_seconds", labels, getattr(timing, part)
    yield "vpipe_rank_idle_ratio", labels, timing.idle_share
    yield "vpipe_rank_in_flight", labels, float(timing.in_flight)
    yield "vpipe_rank_versions", labels, float(timing.versions)
    yield "vpipe_rank_peak_memory_bytes", labels, float(timing.memory)


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
