"""``python -m tests.faults [CASE,...] [--seeds N] [--first SEED] [--ranks N]``: run the battery, print a table."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.faults import battery, table
from tests.faults.case import CASES, Outcome
from tests.faults.cases import load


def main() -> int:
    """Do what the command line says; 1 if anything was wrong."""
    load()
    battery.end_when_told()
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("cases", nargs="?", default="", help="names with commas between; default: all")
    parser.add_argument("--seeds", type=int, default=1, help="how often each case is run, each time otherwise")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of the seeds")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--table", type=Path, help="append what was measured to this file of JSON lines")
    parser.add_argument("--list", action="store_true", help="only say which cases there are")
    parser.add_argument("--markdown", type=Path, nargs="+", metavar="FILE", help="only print such files as a table")
    given = parser.parse_args()
    if given.markdown:
        print(table.markdown(given.markdown))
        return 0
    chosen = [name for name in given.cases.upper().split(",") if name] or list(CASES)
    names = {name.upper(): name for name in CASES}
    if unknown := [name for name in chosen if name.upper() not in names]:
        print(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}", file=sys.stderr)
        return 2
    found = [CASES[names[name.upper()]] for name in chosen]
    if given.list:
        print("\n".join(f"{case.name:4}  {case.injection}  ->  {case.expected}  [{case.invariants}]" for case in found))
        return 0
    outcomes: list[Outcome] = []
    for outcome in battery.outcomes(found, given.ranks, range(given.first, given.first + given.seeds)):
        outcomes.append(outcome)
        print(table.line(outcome), flush=True)
        if given.table:
            with given.table.open("a") as file:
                file.write(json.dumps(_record(outcome)) + "\n")
    print(table.text(outcomes))
    return 1 if any(outcome.problems for outcome in outcomes) else 0


def _record(outcome: Outcome) -> dict[str, object]:
    return {
        "case": outcome.case.name,
        "seed": outcome.seed,
        "seconds": round(outcome.seconds, 1),
        "problems": outcome.problems,
        "times": [asdict(times) for times in outcome.times],
    }


if __name__ == "__main__":
    sys.exit(main())
