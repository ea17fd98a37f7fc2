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
    """A way to train, as the keys given to ``vpipe launch``."""

    name: str
    stages: tuple[int, ...]
    keys: tuple[str, ...]
    color: str


METHODS = (
    Method("BSP", (1, 2, 4), (*PARTS, "sync_mode=bsp", *ADAMW), "black"),
    Method("ASP, stash", (2, 4), (*WHOLE, *ADAMW), "tab:blue"),
    Method("ASP, stash, PipeMare", (4,), (*WHOLE, *ADAMW, "pipemare=750"), "tab:cyan"),
    Method("ASP, 2BW", (2, 4), (*PARTS, "pipeline.schedule=2bw", *ADAMW), "tab:green"),
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
    return [
        Trial(method, stages, seed, rate, steps)
        for rate in rates
        for seed in seeds
        for method in METHODS
        for stages in method.stages
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
        raise JobFailed(ended.stderr.strip() or ended.stdout.strip())
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
    """Markdown: final loss of each method and rate by seed, and its distance from one process with the same seed."""
    by_key = {_key(record): record for record in records}
    seeds = sorted({record["seed"] for record in records})
    yield "| method | stages | lr | " + " | ".join(f"seed {seed} | ± one process" for seed in seeds) + " |"
    yield "|---|---|---|" + "---|---|" * len(seeds)
    for name, stages, rate, steps in dict.fromkeys((r["method"], r["stages"], r["lr"], r["steps"]) for r in records):
        cells = [name, str(stages), f"{rate:g}"]
        for seed in seeds:
            record, base = by_key.get((name, stages, seed, rate, steps)), by_key.get((BASELINE, 1, seed, rate, steps))
            cells.append(f"{record['loss']:.3f}" if record else "")
            cells.append(f"{record['loss'] - base['loss']:+.3f}" if record and base else "")
        yield "| " + " | ".join(cells) + " |"


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Above, loss against samples; below, its distance from one process; a column for each number of stages.

    Of the first seed and rate.
    """
    from matplotlib.figure import Figure

    first = [r for r in records if all(r[key] == records[0][key] for key in ("seed", "lr", "steps"))]
    curves = {(record["method"], record["stages"]): record["curve"] for record in first}
    base = curves[BASELINE, 1]
    figure = Figure(figsize=(11, 7.5), dpi=120, layout="constrained")
    for column, (stages, axes) in enumerate(
        zip((2, 4), figure.subplots(2, 2, sharex=True, sharey="row").T, strict=True)
    ):
        axes[0].axhline(first[0]["baseline_loss"], color="tab:gray", linestyle=":", label="guessing by frequency")
        for method in METHODS:
            curve = curves.get((method.name, min(stages, method.stages[-1])))
            if curve is None:
                continue
            samples, losses = zip(*curve, strict=True)
            style = {"color": method.color, "linewidth": 1.2, "label": method.name}
            axes[0].plot(samples, losses, **style)
            axes[1].plot(samples, [a - b for a, (_, b) in zip(losses, base, strict=True)], **style)
        axes[0].set_title(f"{stages} stages")
        axes[1].set(xlabel="sequences seen", ylim=(-0.25, 0.5))
        if column == 0:
            axes[0].set_ylabel("loss (nats per masked token)")
            axes[1].set_ylabel("above BSP in one process")
            axes[0].legend(fontsize=8)
        for each in axes:
            each.grid(alpha=0.25)
    figure.savefig(path)


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[key] for key in ("method", "stages", "seed", "lr", "steps"))


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then print the table and draw FILE's picture beside it; 1 if a job failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("docs/convergence.jsonl"), metavar="FILE")
    parser.add_argument("--steps", type=int, default=3000, help="updates of each job")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3], help="highest learning rates")
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
    if records := _read(chosen.file):
        print("\n".join(table(records)))
        draw(records, chosen.file.with_suffix(".png"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
