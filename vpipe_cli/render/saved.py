"""Checkpoints as a table, as records, and as a verdict line by line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vpipe_cli.checkpoints import Checkpoint
from vpipe_cli.render import text
from vpipe_cli.sanitize import clean
from worker.checkpoint import layout

if TYPE_CHECKING:
    from rich.table import Table


def record(checkpoint: Checkpoint) -> dict[str, Any]:
    """One checkpoint for a machine."""
    found = checkpoint.manifest
    known = {"time": found.time, "bytes": found.bytes, "attempt": found.attempt} if found else {}
    return {"run": checkpoint.run, "step": checkpoint.step, "path": str(checkpoint.path)} | known


def table(listed: Sequence[Checkpoint]) -> Table:
    """Checkpoints as ``vpipe checkpoint ls`` lists them."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("step", "size", "age"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("partition", no_wrap=True)
    shown.add_column("folder", overflow="fold")
    for each in listed:
        found = each.manifest
        age = text.age(time.time() - found.time) if found else "-"
        size = text.size(found.bytes) if found else "-"
        partition = str(found.plan["partition"]) if found else "damaged"
        shown.add_row(*map(Text, [str(each.step), size, age, partition, clean(str(each.path))]))
    return shown


def verdict(checkpoint: Checkpoint, problems: Sequence[str]) -> list[str]:
    """What ``vpipe checkpoint verify`` says of one."""
    found = checkpoint.manifest
    if problems or found is None:
        return [clean(f"{checkpoint.name} is damaged"), *(clean(f"  {problem}") for problem in problems)]
    lines = [f"{checkpoint.name} is whole: {len(found.files)} files, {text.size(found.bytes)}"]
    strangers = layout.extra(checkpoint.path, found.files)
    return lines + [clean(f"  {name} does not belong to it, and is never opened") for name in strangers]
