"""python -m benchmarks.convergence: loss against samples, in one process and pipelined in every way, as real jobs.

Every method sees the same examples, updates as often, and after as many of them; so what differs is the weights that
each gradient was computed with. What FILE has already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from worker.spec.files import RunFiles

CLUSTER = """\
name: convergence
machines: [cpu]
model: {name: bert, hidden_size: 64, num_layers: 4, num_heads: 4, dropout: 0.0}
data: {source: python-stdlib, sequence_length: 32, vocab_size: 512}
optimizer: {schedule: linear, warmup_steps: 200}
run: {threads: 1, stall_timeout: 300}
"""
SAMPLES = 32
"""Sequences per update."""
POINTS = 60
"""Means that a curve is kept as."""
DEADLINE = 3600.0
"""Seconds for one job, however busy the machine."""

WHOLE = ("minibatch_size=32", "sync_mode=asp")
PARTS = ("minibatch_size=8", "minibatches_per_step=4")
ADAMW, NADAM = ("optimizer.name=adamw",), ("optimizer.name=nadam", "betas=[0.99, 0.999]")


class JobFailed(Exception):
    """A job that did not succeed, with what it said."""


@dataclass(frozen=True)
class Method:
    """A way to train, as the keys given to ``vpipe launch``.

    ``is_same``: the number of stages changes no bit of it, so more than the first number are run once only.
    """

    name: str
    stages: tuple[int, ...]
    keys: tuple[str, ...]
    color: str
    is_same: bool = False


METHODS = (
    Method("BSP", (1, 2, 4), (*PARTS, "sync_mode=bsp", *ADAMW), "black", is_same=True),
    Method("ASP, stash", (2, 4), (*WHOLE, *ADAMW), "tab:blue"),
    Method("ASP, stash, PipeMare", (4,), (*WHOLE, *ADAMW, "pipemare=375"), "tab:cyan"),
    Method("ASP, 2BW", (2, 4), (*PARTS, "pipeline.schedule=2bw", *ADAMW), "tab:green", is_same=True),
    Method("ASP, accumulate", (2, 4), (*PARTS, "pipeline.schedule=accumulate", *ADAMW), "tab:red"),
    Method("BSP, NAdam", (1,), (*PARTS, "sync_mode=bsp", *NADAM), "tab:gray"),
    Method("ASP, stash, NAdam", (2, 4), (*WHOLE, *NADAM), "tab:orange"),
)
BASELINE = METHODS[0].name


@dataclass(frozen=True)
class Trial:
    """One job: a method on so many stages."""

    method: Method
    stages: int
    seed: int
    rate: float
    steps: int

    @property
    def key(self) -> dict[str, Any]:
        """What tells it from all others."""
        rest = {"stages": self.stages, "seed": self.seed, "lr": self.rate, "steps": self.steps}
        return {"method": self.method.name, **rest}

    def overrides(self) -> list[str]:
        """What ``vpipe launch`` is told beside the file."""
        own = [f"machines=[cpu*{self.stages}]", f"lr={self.rate}", f"seed={self.seed}", f"run.steps={self.steps}"]
        return [*own, *self.method.keys]


def trials(steps: int, seeds: Sequence[int], rates: Sequence[float]) -> list[Trial]:
    """All jobs; the first seed and rate come first."""
    runs = [(seed, rate) for seed in seeds for rate in rates]
    return [
        Trial(method, stages, seed, rate, steps)
        for seed, rate in runs
        for method in METHODS
        for stages in (method.stages[:1] if method.is_same and (seed, rate) != runs[0] else method.stages)
    ]


def run(trial: Trial, home: Path) -> dict[str, Any]:
    """Launch the job as a user does and wait for it: its record. Raises JobFailed."""
    cluster = home / "cluster.yml"
    cluster.write_text(CLUSTER)
    vpipe, environment = [sys.executable, "-m", "vpipe_cli.app"], {**os.environ, "VPIPE_HOME": str(home)}
    command = [*vpipe, "launch", "-o", "json", str(cluster), *trial.overrides()]
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        subprocess.run([*vpipe, "stop"], env=environment, capture_output=True, timeout=60)
        raise JobFailed(f"not done after {DEADLINE:.0f} s") from None
    if ended.returncode:
        failure = (json.loads(ended.stdout) if ended.stdout else {}).get("first_failure")
        raise JobFailed(failure["cause"] if failure else ended.stderr.strip())
    status = json.loads(ended.stdout)
    result = status["result"]
    taken = ("loss", "baseline_loss", "seconds", "weights_sha256")
    return {**trial.key, **{key: result[key] for key in taken}, "curve": _curve(status["folder"], trial)}


def _curve(folder: str, trial: Trial) -> list[tuple[int, float]]:
    """(samples seen, mean loss) over the run in POINTS pieces, as the last stage measured it."""
    path = RunFiles(Path(folder)).metrics(trial.stages - 1)
    losses = [json.loads(line)["loss"] for line in path.read_text().splitlines()]
    width = max(1, len(losses) // POINTS)
    pieces = [(end, losses[end - width : end]) for end in range(width, len(losses) + 1, width)]
    return [(end * SAMPLES, round(mean(piece), 4)) for end, piece in pieces]


def table(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown: the final loss of each method, and how far it is above one process with the same seed and rate."""
    losses = {(r["method"], r["stages"], r["lr"], r["seed"]): r["loss"] for r in records}
    runs = list(dict.fromkeys((record["lr"], record["seed"]) for record in records))
    yield "| method | stages | " + " | ".join(f"lr {rate:g}, seed {seed}" for rate, seed in runs) + " |"
    yield "|---|---|" + "---|" * len(runs)
    for name, stages in dict.fromkeys((record["method"], record["stages"]) for record in records):
        cells = [name, str(stages)]
        for run in runs:
            loss, base = losses.get((name, stages, *run)), losses.get((BASELINE, 1, *run))
            cells.append("" if loss is None or base is None else f"{loss:.3f} ({loss - base:+.3f})")
        yield "| " + " | ".join(cells) + " |"


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss against samples: a row for each rate, a column for each number of stages; of the first seed."""
    from matplotlib.figure import Figure

    first = [record for record in records if record["seed"] == records[0]["seed"]]
    rates = list(dict.fromkeys(record["lr"] for record in first))
    figure = Figure(figsize=(11, 4.2 * len(rates)), dpi=120, layout="constrained")
    panels = figure.subplots(len(rates), 2, sharex=True, sharey=True, squeeze=False)
    for row, rate in zip(panels, rates, strict=True):
        curves = {(r["method"], r["stages"]): r["curve"] for r in first if r["lr"] == rate}
        for stages, axes in zip((2, 4), row, strict=True):
            axes.axhline(first[0]["baseline_loss"], color="tab:gray", linestyle=":", label="guessing by frequency")
            for method in METHODS:
                # What a number of stages does not change is drawn from fewer.
                measured = [number for number in method.stages if number <= stages and (method.name, number) in curves]
                if measured:
                    samples, losses = zip(*curves[method.name, measured[-1]], strict=True)
                    axes.plot(samples, losses, color=method.color, linewidth=1.2, label=method.name)
            axes.set_title(f"{stages} stages, lr {rate:g}")
            axes.grid(alpha=0.25)
        row[0].set_ylabel("loss (nats per masked token)")
    for axes in panels[-1]:
        axes.set_xlabel("sequences seen")
    panels[0][1].legend(fontsize=8)
    figure.savefig(path)


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[key] for key in ("method", "stages", "seed", "lr", "steps"))


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then print the table and draw FILE's picture beside it; 1 if a job failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("docs/convergence.jsonl"), metavar="FILE")
    parser.add_argument("--steps", type=int, default=1500, help="updates of each job")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 1e-3], help="highest learning rates")
    chosen = parser.parse_args(arguments)
    failed = False
    with tempfile.TemporaryDirectory(prefix="vpipe-convergence-") as home:
        for trial in trials(chosen.steps, chosen.seeds, chosen.rates):
            if _key(trial.key) in map(_key, _read(chosen.file)):
                continue
            try:
                record = run(trial, Path(home))
            except JobFailed as error:
                print(f"{trial.key}: {error}", file=sys.stderr)
                failed = True
                continue
            with chosen.file.open("a") as lines:
                lines.write(json.dumps(record) + "\n")
            print(json.dumps({key: value for key, value in record.items() if key != "curve"}), flush=True)
    if records := [record for record in _read(chosen.file) if record["steps"] == chosen.steps]:
        print("\n".join(table(records)))
        draw(records, chosen.file.with_suffix(".png"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
