"""The timeline of a simulated schedule: as text for a terminal, as a picture for a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from worker.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from worker.schedule import Action
    from worker.schedule.walk import Span

COLOURS = {"F": "#4c78a8", "B": "#f58518", "I": "#f58518", "W": "#72b7b2", "U": "#54a24b"}
NAMES = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient", "U": "update"}


def text(ranks: Sequence[Sequence[Span]], width: int = 80) -> str:
    """One line a rank, scaled to ``width`` columns: ``F0--`` where it computes, ``.`` where it waits.

    Where most have no room for the minibatch, the letters stand alone; what is shorter than half a column is left out.
    Later chunks of a rank are in small letters.
    """
    end = max((span.end for spans in ranks for span in spans), default=0.0)
    margin = len(str(len(ranks) - 1)) + 1
    columns = max(1, width - margin)
    scale = columns / end if end else 0.0
    drawn = [span for spans in ranks for span in spans if span.end > span.start]
    roomy = sum(len(_label(span.action)) <= (span.end - span.start) * scale for span in drawn)
    lines = (_line(spans, columns, scale, 2 * roomy >= len(drawn)) for spans in ranks)
    return "\n".join(f"{rank:>{margin - 1}} {line}" for rank, line in enumerate(lines))


def _line(spans: Sequence[Span], columns: int, scale: float, is_numbered: bool) -> str:
    line = ["."] * columns
    home = min((span.action.stage for span in spans), default=0)
    for span in spans:
        first, last = round(span.start * scale), round(span.end * scale)
        label = _label(span.action)
        if not is_numbered or len(label) > last - first:
            label = label[0]
        if span.action.stage != home:
            label = label.lower()
        line[first:last] = label.ljust(last - first, "-")[: last - first]
    return "".join(line).rstrip(".")


def _label(action: Action) -> str:
    return f"{action.kind.value}{action.minibatch}"


def save(ranks: Sequence[Sequence[Span]], path: Path, form: str, title: str) -> None:
    """Draw the timeline into ``path`` as "png" or "svg".

    Raises:
        UsageError: if the file cannot be written, or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("drawing a picture needs matplotlib", "pip install 'vpipe[worker]'") from None
    figure = Figure(figsize=(12, 1.2 + 0.4 * len(ranks)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    _bars(axes, ranks)
    axes.set(xlabel="time", ylabel="rank", title=title, yticks=range(len(ranks)))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=len(COLOURS), frameon=False)
    try:
        figure.savefig(path, format=form)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def _bars(axes: Axes, ranks: Sequence[Sequence[Span]]) -> None:
    named: set[str] = set()
    for rank, spans in enumerate(ranks):
        for kind, colour in COLOURS.items():
            own = [span for span in spans if span.action.kind.value == kind and span.end > span.start]
            bars = [(span.start, span.end - span.start) for span in own]
            if bars:
                label = NAMES[kind] if kind not in named else None
                axes.broken_barh(bars, (rank - 0.4, 0.8), color=colour, edgecolor="white", linewidth=0.3, label=label)
                named.add(kind)
