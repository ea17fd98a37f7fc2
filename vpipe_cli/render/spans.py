"""What `vpipe trace` says of the recorded spans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vpipe_cli.sanitize import clean
from vpipe_cli.tracing.read import RankTrace
from vpipe_cli.tracing.sums import Shares, minibatches

if TYPE_CHECKING:
    from rich.table import Table


def table(ranks: Sequence[Shares]) -> Table:
    """One line a rank: how long was recorded, and the shares of it."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("rank", "host", "recorded", "compute", "of it again", "sending", "waiting", "data"):
        shown.add_column(name, justify="left" if name == "host" else "right", no_wrap=True)
    for each in ranks:
        parts = (each.compute, each.recompute, each.send, each.idle, each.data)
        numbers = [f"{part / max(each.seconds, 1e-12):.0%}" for part in parts]
        shown.add_row(*map(Text, [str(each.rank), clean(each.host), f"{each.seconds:.2f} s", *numbers]))
    return shown


def summary(traces: Sequence[RankTrace], path: Path) -> str:
    """Which minibatches, how well the clocks are known, and where the trace is."""
    numbers = minibatches(traces)
    error = max(trace.offset_error for trace in traces)
    clocks = f"clocks within {error * 1e6:.0f} us of rank 0's" if error else "one clock for all ranks"
    spans = sum(len(trace.spans) for trace in traces)
    return f"\n{spans} spans of {len(numbers)} minibatches ({numbers[0]} to {numbers[-1]}), {clocks}\n{path}"
