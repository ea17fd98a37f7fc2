"""Which logs of a run are meant, and the reader that has them: this machine, or the hosts of the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vpipe_cli.runs import logs
from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.logs import Source
from vpipe_cli.runs.merge import Entry
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


@contextmanager
def ask(
    run: Run, choice: Choice, query: Query, pause: Callable[[], None], say: Callable[[str], None]
) -> Iterator[tuple[list[Source], Iterator[list[Entry]]]]:
    """The logs that are meant (the list may grow), and the lines that answer the query.

    Those of a run on other hosts are asked for there, unless it has ended: then all of them are here.

    Args:
        pause: called between two looks while a run is followed.
        say: told which host does not answer, while it is waited for.
    """
    job, first = placed_job(run), choice.first(run)

    def find() -> list[Source]:
        return choice.sources(run, job, first)

    find()  # a mistake in the choice is told before anything is connected to
    if not run.files.hosts.exists() or said_to_have_ended(run):
        local = LocalReader(find, query)
        yield local.sources, batches(local, query, lambda: ended(run), pause)
        return
    with ExitStack() as stack:
        reader = RemoteReader(find, query, json.loads(run.files.hosts.read_bytes()), _dialler(job, stack), say)
        stack.callback(reader.close)
        yield reader.sources, batches(reader, query, lambda: query.follow and reader.quiet and ended(run), pause)


def said_to_have_ended(run: Run) -> bool:
    """Whether the run's folder here says that it has ended. That is written last: then everything is here."""
    return any(event.get("state") in FINAL for event in read_events(run.files.events) if event.get("event") == "state")


def _dialler(job: Job, stack: ExitStack) -> Callable[[str], Transport]:
    """Connects to one host at a time, and again whenever it is asked to."""

    def dial(host: str) -> Transport:
        return stack.enter_context(connect([host], job.spec.ssh))[host]

    return dial


def copy(run: Run, choice: Choice, folder: Path) -> Iterator[tuple[Path, int]]:
    """Append to copies below ``folder`` what is new in the logs; each copy, and how many bytes it has got."""
    job, first = placed_job(run), choice.first(run)
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
