"""Many cases for many seeds: those whose times count run alone, all others two at a time.

Those on the testbed, whose ranks only sleep, run beside the others: all in this process, which has one testbed.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from tests.faults.case import CASES, Case, Outcome, alone
from tests.faults.cases import load
from tests.faults.references import References

AT_ONCE = 2
DEADLINE = 1800.0
"""Seconds for one case; every command in it ends long before."""

Task = tuple[str, int, int, Path]
"""A case, the ranks of its runs, its seed, and the folder of references."""


def end_when_told() -> None:
    """End by an exception, so that what was begun is ended, whoever says it again meanwhile."""

    def end(number: int, _: object) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(143)

    signal.signal(signal.SIGTERM, end)


def outcomes(cases: Sequence[Case], ranks: int, seeds: Sequence[int]) -> Iterator[Outcome]:
    """What comes of each case with each seed, as it comes: one seed after the other."""
    with (
        tempfile.TemporaryDirectory(prefix="faults-references-") as folder,
        multiprocessing.get_context("spawn").Pool(AT_ONCE, _begin) as pool,
    ):
        for seed in seeds:
            tasks = {case: (case.name, ranks, seed, Path(folder)) for case in cases}
            others = [task for case, task in tasks.items() if not case.timed and case.needs != "testbed"]
            found = pool.imap_unordered(_carry_out, others)
            yield from (_carry_out(task) for case, task in tasks.items() if case.needs == "testbed")
            yield from (found.next(DEADLINE) for _ in others)
            yield from (_carry_out(task) for case, task in tasks.items() if case.timed)


def _begin() -> None:
    end_when_told()
    load()


def _carry_out(task: Task) -> Outcome:
    name, ranks, seed, folder = task
    return alone(CASES[name], ranks, seed, References(folder))
