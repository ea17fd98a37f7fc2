"""Which logs of a run are meant, and the reader that has them: this machine, or the hosts of the run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from vpipe_cli.engines import bring_logs
from vpipe_cli.runs import logs
from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.logs import Source
from vpipe_cli.runs.merge import Make, T
from vpipe_cli.runs.reading import LocalReader, Query, batches
from vpipe_cli.runs.remote import RemoteReader
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.store import Run
from vpipe_cli.transport.base import Transport
from vpipe_cli.transport.connect import connect
from worker.errors import UsageError
from worker.spec.files import read_events
from worker.spec.job import Job
from worker.spec.records import FINAL

CHUNK = 1 << 20
BRING_LIMIT = 5.0  # seconds to bring the logs of a run that has ended, before its hosts are asked instead
NO_LIMIT = 1e6
LOOK_AGAIN = 3.0  # seconds between two looks at whether a run that is followed has ended


@dataclass(frozen=True)
class Choice:
    """The logs that are meant: of some ranks, one stage, one host; of one attempt, the newest ones, or all."""

    ranks: str | None = None
    stage: int | None = None
    host: str | None = None
    attempt: int | None = None
    every: bool = False

    def first(self, run: Run) -> int:
        """The first attempt that is meant. Raises UsageError if there is no such."""
        there = logs.attempts(run.files)
        if self.attempt is not None and self.attempt not in there:
            tell = f"this run has {'attempt' if len(there) == 1 else 'attempts'} {', '.join(map(str, there))}"
            raise UsageError(f"--attempt {self.attempt}: there was no such", tell)
        return self.attempt or (there[0] if self.every else there[-1])

    def sources(self, run: Run, job: Job, first: int) -> list[Source]:
        """The logs there are by now, from attempt ``first`` on."""
        there = [self.attempt] if self.attempt else [each for each in logs.attempts(run.files) if each >= first]
        chosen = [logs.choose(logs.sources(run.files, job, each), self.ranks, self.stage, self.host) for each in there]
        return [source for attempt in chosen for source in attempt]


class Lines(Protocol):
    """The lines that answer a query, in the order of time, as what ``make`` makes of them."""

    def __call__(self, make: Make[T]) -> Iterator[list[T]]:
        """In batches, as they come."""


@contextmanager
def ask(
    run: Run, choice: Choice, query: Query, pause: Callable[[], None], say: Callable[[str], None]
) -> Iterator[tuple[list[Source], Lines]]:
    """The logs that are meant (the list may grow), and the lines that answer the query.

    Those of a run on other hosts are asked for there, unless all of them are here; where a host of a run that has
    ended does not answer, what had come by then is shown.

    Args:
        pause: called between two looks while a run is followed.
        say: told which host does not answer, while it is waited for.
    """
    job, first = placed_job(run), choice.first(run)

    def find() -> list[Source]:
        return choice.sources(run, job, first)

    find()  # a mistake in the choice is told before anything is connected to
    if not run.files.hosts.exists() or _are_here(run, query, say):
        local = LocalReader(find, query)
        yield local.sources, lambda make: batches(local, query, lambda: ended(run), pause, make)
        return
    with ExitStack() as stack:
        reader = RemoteReader(find, query, json.loads(run.files.hosts.read_bytes()), dialler(job, stack), say)
        stack.callback(reader.close)
        finished = _finished(run, reader, query)
        yield reader.sources, lambda make: batches(reader, query, finished, pause, make)


def _finished(run: Run, reader: RemoteReader, query: Query) -> Callable[[], bool]:
    """Whether a reader that follows has read all there is, and nobody writes any more. A rank that left no exit record
    would never say so, so that the run is looked at now and then."""
    over, next_look = False, time.monotonic() + LOOK_AGAIN

    def finished() -> bool:
        nonlocal over, next_look
        if query.follow and not over and (reader.quiet or time.monotonic() > next_look):
            next_look = time.monotonic() + LOOK_AGAIN
            if over := ended(run):
                reader.finish()
                return False
        return over and reader.quiet

    return finished


def _are_here(run: Run, query: Query, say: Callable[[str], None]) -> bool:
    """Whether the logs on this machine are all that can be had of a run on other hosts."""
    if run.files.logs_whole.exists():
        return True
    if not _said_to_have_ended(run):
        return False
    missing = bring_logs(run, BRING_LIMIT)
    for host, error in missing.items():
        say(f"{host}: {error.message.splitlines()[0].removeprefix(f'{host}: ')}; what had come from there is shown")
    return bool(missing) or run.files.logs_whole.exists()


def _said_to_have_ended(run: Run) -> bool:
    return any(event.get("state") in FINAL for event in read_events(run.files.events) if event.get("event") == "state")


def dialler(job: Job, stack: ExitStack) -> Callable[[str], Transport]:
    """Connects to one host at a time, and again whenever it is asked to."""

    def dial(host: str) -> Transport:
        return stack.enter_context(connect([host], job.spec.ssh))[host]

    return dial


def copy(run: Run, choice: Choice, folder: Path, say: Callable[[str], None]) -> Iterator[tuple[Path, int]]:
    """Append to copies below ``folder`` what is new in the logs; each copy, and how many bytes it has got.

    Args:
        say: told which host does not answer.
    """
    job, first = placed_job(run), choice.first(run)
    for host, error in bring_logs(run, NO_LIMIT).items():
        say(f"{host}: {error.message.splitlines()[0].removeprefix(f'{host}: ')}")
    for source in choice.sources(run, job, first):
        if source.path.exists():
            target = folder / run.id / f"attempt-{source.attempt}" / source.path.name
            yield target, _copy(source.path, target)


def _copy(source: Path, target: Path) -> int:
    """Append what ``target`` lacks of ``source``; a copy that is no beginning of it is made anew."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with source.open("rb") as log, open(os.open(target, flags, 0o600), "r+b") as copied:
        have = copied.seek(0, 2)
        if have and not _same_end(log, copied, have):
            copied.truncate(0)
            have = 0
        log.seek(have)
        copied.seek(have)
        while piece := log.read(CHUNK):
            copied.write(piece)
        return copied.tell() - have


def _same_end(log: BinaryIO, copied: BinaryIO, have: int) -> bool:
    begin = max(0, have - 4096)
    log.seek(begin)
    copied.seek(begin)
    return log.read(have - begin) == copied.read(have - begin)


def ended(run: Run) -> bool:
    """Whether nobody writes into the run's logs any more."""
    return standing(run).state in FINAL
