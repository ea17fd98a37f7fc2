"""loss.png: the loss of a run over its steps, beside that of guessing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.metrics import baseline_loss, loss_curve
from vpipe_cli.runs.store import Run
from worker.errors import NotFinished

Points = Sequence[tuple[float, float]]


def ensure(run: Run) -> str:
    """Draw the loss of an ended run unless its picture is there. The picture's path; or why there is none."""
    path = run.files.loss_plot
    if path.exists():
        return str(path)
    try:
        curve = loss_curve(run.files, placed_job(run))
        if not curve:
            return "none: the run made no step"
        _write(path, draw(curve, baseline_loss(run.files), run.id))
    except NotFinished:
        return "none: the run never began"
    except ImportError:
        return "none: matplotlib is not installed (pip install 'vpipe[worker]')"
    except OSError as error:
        return f"none: {error}"
    return str(path)


def draw(curve: Points, baseline: float | None, title: str) -> bytes:
    """A PNG of (step, loss) points with their running mean, and the baseline as a dashed line. Raises ImportError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    steps, losses = zip(*curve, strict=True)
    axes.plot(steps, losses, color="tab:blue", linewidth=0.8, alpha=0.4)
    axes.plot(steps, running_mean(losses), color="tab:blue", linewidth=1.8, label="loss (running mean)")
    if baseline is not None:
        label = f"{baseline:.3f}: guessing by how frequent each token is"
        axes.axhline(baseline, color="tab:gray", linestyle="--", linewidth=1.2, label=label)
    axes.set(xlabel="step", ylabel="loss (nats per target)", title=title)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", framealpha=0.9)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value with its neighbours, over a twentieth of all; over fewer at both ends."""
    half = len(values) // 40
    windows = (values[max(0, at - half) : at + half + 1] for at in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _write(path: Path, picture: bytes) -> None:
    """Aside, then renamed: two that draw at once leave one whole picture."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(picture)
    os.replace(aside, path)
