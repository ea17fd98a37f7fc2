"""What came of the cases, as text and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.faults.case import CASES, Outcome


def line(outcome: Outcome) -> str:
    """One outcome for people who wait."""
    case = outcome.case
    if outcome.skipped:
        return f"-     {case.name:4} {case.injection}: skipped, {outcome.skipped}"
    verdict = "FAIL" if outcome.problems else "ok  "
    told = "".join(f"\n        {problem}" for problem in outcome.problems)
    return f"{verdict}  {case.name:4} {case.injection} ({outcome.seconds:.0f} s){told}"


def text(outcomes: Sequence[Outcome]) -> str:
    """All of them: how often each case was right, and how long things took."""
    rows = [("case", "right", "detect", "clean up", "resume")]
    for name in dict.fromkeys(outcome.case.name for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.case.name == name]
        right = f"{sum(not outcome.problems for outcome in own)}/{len(own)}"
        times = [each for outcome in own for each in outcome.times]
        rows.append((name, right, *(spread([getattr(t, key) for t in times]) for key in ("detect", "clean", "resume"))))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def markdown(files: Sequence[Path]) -> str:
    """The table of docs/reliability.md, from what ``--table`` has written: every case, whether it was run or not."""
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    rows = ["| case | what is done | what must become of it | right | detect | clean up | resume |"]
    rows.append("|---|---|---|---|---|---|---|")
    for case in CASES.values():
        own = [record for record in records if record["case"] == case.name]
        times = [each for record in own for each in record["times"]]
        cells = [spread([each[key] for each in times]) for key in ("detect", "clean", "resume")]
        right = f"{sum(not record['problems'] for record in own)}/{len(own)}" if own else "not run"
        rows.append(f"| {' | '.join([case.name, case.injection, case.expected, right, *cells])} |")
    return "\n".join(rows)


def spread(values: Sequence[float | None]) -> str:
    """Median and worst, in seconds."""
    there = [value for value in values if value is not None]
    return f"{median(there):.2f} / {max(there):.2f} s" if there else ""
