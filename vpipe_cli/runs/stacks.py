"""The stacks of a run's ranks: what each does at this moment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpipe_cli.onhost import send
from vpipe_cli.runs.logs import attempts
from vpipe_cli.runs.places import Place, reached
from vpipe_cli.runs.store import Run
from worker.errors import VpipeError
from worker.spec.files import RunFiles

LIMIT = 15.0
FRAME = re.compile(r'  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<name>.*)')
OURS = re.compile(r".*/(worker/.*\.py)")


@dataclass(frozen=True)
class Stack:
    """One rank: ``at`` is the innermost place in vpipe's own code, ``state`` what is odd about the process."""

    rank: int
    stage: int
    host: str
    pid: int | None
    state: str
    at: str
    stack: str


def stacks(run: Run, chosen: Sequence[Place]) -> list[Stack]:
    """The stacks of the chosen ranks, all hosts asked at once. Raises UnreachableError if one cannot be reached."""
    hosts = list(dict.fromkeys(place.host for place in chosen))
    attempt = attempts(run.files)[-1]
    with reached(run, hosts) as transports, ThreadPoolExecutor(len(hosts)) as pool:

        def ask(host: str) -> list[dict[str, Any]]:
            files = [
                [place.rank, str(RunFiles(Path(place.folder)).stacks(attempt, place.rank))]
                for place in chosen
                if place.host == host
            ]
            try:
                found: list[dict[str, Any]] = send.ask(
                    transports[host], "stacks", {"run": run.id, "ranks": files}, timeout=LIMIT
                )
            except (VpipeError, TimeoutError) as error:
                state = getattr(error, "message", str(error))
                return [{"rank": rank, "pid": None, "state": state, "stack": ""} for rank, _ in files]
            return found

        answers = {each["rank"]: each for found in pool.map(ask, hosts) for each in found}
    return [_stack(place, answers[place.rank]) for place in chosen if place.rank in answers]


def _stack(place: Place, answer: dict[str, Any]) -> Stack:
    text = answer["stack"].strip("\n")
    state = answer["state"] or ("" if text else "does not answer")
    return Stack(place.rank, place.stage, place.host, answer["pid"], state, innermost(text), text)


def innermost(stack: str) -> str:
    """The innermost frame of the main thread in vpipe's own code, or else its innermost of all."""
    main = re.split(r"\n\s*\n", stack)[-1]  # faulthandler writes the current thread last
    frames = [match for line in main.splitlines() if (match := FRAME.match(line))]
    ours = [frame for frame in frames if OURS.match(frame["file"])]
    if not (best := next(iter(ours or frames), None)):
        return ""
    file = OURS.sub(r"\1", best["file"])
    return f"{file}:{best['line']} in {best['name']}"
