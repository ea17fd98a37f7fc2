"""One case of the battery: what is done, what must become of it, and how it is carried out and judged."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.arena import Arena, Trial
from tests.faults.checkers import check
from tests.faults.references import References
from tests.faults.times import Times, measure
from tests.testbed.network import lacks

Act = Callable[[Arena, random.Random], list[Trial]]
CASES: dict[str, Case] = {}
"""Every case, by its name."""


@dataclass(frozen=True)
class Case:
    """``act`` does it and asserts what is special to it; it gives back the runs whose remains are to be checked.

    ``invariants`` are those the case is about; all are checked.
    """

    name: str
    injection: str
    expected: str
    invariants: str
    act: Act
    needs: str = ""
    """Not empty where it needs what a testbed needs: root, namespaces, an sshd."""
    timed: bool = False
    """Whether something must happen within so many seconds, so that nothing else may run meanwhile."""


@dataclass
class Outcome:
    """What came of a case. ``problems`` is empty where all was as it must be."""

    case: Case
    seed: int
    seconds: float
    problems: list[str] = field(default_factory=list)
    times: list[Times] = field(default_factory=list)
    skipped: str = ""


def case(
    name: str, injection: str, expected: str, invariants: str, needs: str = "", timed: bool = False
) -> Callable[[Act], Act]:
    """Put a function into the battery."""

    def keep(act: Act) -> Act:
        assert name not in CASES
        CASES[name] = Case(name, injection, expected, invariants, act, needs, timed)
        return act

    return keep


def carry_out(chosen: Case, arena: Arena, seed: int = 0) -> Outcome:
    """Do it and look at everything that is left."""
    began = time.monotonic()
    outcome = Outcome(chosen, seed, 0.0)
    if chosen.needs and (missing := lacks()):
        outcome.skipped = f"needs {missing}"
        return outcome
    try:
        trials = chosen.act(arena, random.Random(f"{chosen.name} {seed}"))
    except Exception as error:  # a mistake in the case is a case that has not been shown
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome.problems.append(f"{Path(where.filename).name}:{where.lineno}: {str(error) or repr(error)}")
        trials = [trial for trial in arena.trials[-1:] if trial.files.events.exists()]
    for trial in trials:
        if trial.said:
            outcome.problems += check(trial)
            outcome.times += measure(trial)
    outcome.times += [Times(*each) for each in arena.times]
    outcome.seconds = time.monotonic() - began
    return outcome


def alone(chosen: Case, ranks: int, seed: int, references: References) -> Outcome:
    """Carry it out in an arena of its own, which goes with it unless something was wrong."""
    folder = Path(tempfile.mkdtemp(prefix=f"faults-{chosen.name}-"))
    arena = Arena(folder, ranks, references)
    try:
        outcome = carry_out(chosen, arena, seed)
    finally:
        arena.close()
    if outcome.problems:
        outcome.problems.append(f"its files are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome
