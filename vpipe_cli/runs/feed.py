"""What the ranks of a run print, for whoever watches it: from the files here, or from its hosts while it lives."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from queue import Empty, Full, Queue

from vpipe_cli.engines import bring_logs
from vpipe_cli.runs import logs, merge
from vpipe_cli.runs.ask import dialler
from vpipe_cli.runs.logs import Cursor, Record, Source
from vpipe_cli.runs.reading import Query
from vpipe_cli.runs.remote import RemoteReader
from vpipe_cli.runs.store import Run
from worker.spec.job import Job

PAUSE = 0.2
AHEAD = 10_000
"""Records that may wait to be shown."""


class Feed:
    """The records of some logs that grow, those of this machine. ``cursor`` says how far they were handed out."""

    def __init__(self, run: Run, job: Job, attempts: int) -> None:
        self._run, self._job = run, job
        self.sources: list[Source] = []
        self.cursor: Cursor = {}
        self.attempts = 0
        self.extend(attempts)

    def extend(self, attempts: int) -> None:
        """Go on to the logs of later attempts; a restart opens new ones."""
        for attempt in range(self.attempts + 1, attempts + 1):
            self.sources = [*self.sources, *logs.sources(self._run.files, self._job, attempt)]
            self.attempts = attempt

    def last(self, count: int) -> list[Record]:
        """The newest records there are, before any other is asked for; what is older is passed over."""
        return logs.last(self.sources, self.cursor, count)

    def new(self) -> Iterator[Record]:
        """What is new."""
        return logs.read(self.sources, self.cursor)

    def finish(self, wait: float) -> Iterator[Record]:
        """All that is left, once nobody writes any more; a feed that waits for hosts gives them ``wait`` seconds."""
        return logs.read(self.sources, self.cursor, rest=True)

    def close(self) -> None:
        """Ask for no more."""


class RemoteFeed(Feed):
    """The same from the hosts of a run, read by a thread of its own: whoever watches never waits for a host."""

    def __init__(self, run: Run, job: Job, attempts: int) -> None:
        super().__init__(run, job, attempts)
        self._queue: Queue[Record] = Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._only: int | None = None
        self._over = self._quiet = False

    def last(self, count: int) -> list[Record]:
        """Nothing yet: they come like all others."""
        self._only = count
        return []

    def new(self) -> Iterator[Record]:
        """What has come."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()
        while True:
            try:
                yield self._queue.get_nowait()
            except Empty:
                return

    def finish(self, wait: float) -> Iterator[Record]:
        """All that is left on the hosts, and then what only this machine has."""
        bring_logs(self._run, 0.0)
        self._over, until = True, time.monotonic() + wait
        while not self._quiet and time.monotonic() < until:
            for record in self.new():
                until = time.monotonic() + wait
                yield record
            time.sleep(PAUSE / 4)
        self.close()
        yield from self.new()
        if self._thread is not None:
            self._thread.join(2 * PAUSE)  # it hands out nothing more, whether it has noticed or not
        yield from self.new()
        bring_logs(self._run, 0.0 if self._run.files.logs_whole.exists() else wait)
        yield from logs.read(self.sources, dict(self.cursor), rest=True)

    def close(self) -> None:
        """Ask for no more."""
        self._stopped.set()

    def _follow(self) -> None:
        with ExitStack() as stack:
            folders = json.loads(self._run.files.hosts.read_bytes())
            query = Query(tail=self._only, follow=True)
            dial = dialler(self._job, stack)
            reader = RemoteReader(lambda: self.sources, query, folders, dial, lambda _: None)
            stack.callback(reader.close)
            if self._only is not None:
                self._take_last(reader, self._only)
            while not self._stopped.is_set():
                if self._over:
                    reader.finish()
                self._pass(reader)
                self._quiet = self._over and reader.quiet
                self._stopped.wait(PAUSE)

    def _take_last(self, reader: RemoteReader, count: int) -> None:
        tails: list[list[bytes]] = []
        for number, stream in enumerate(reader.streams(False)):
            lines: list[bytes] = []
            for end, data in stream:
                lines += data.split(b"\n")[:-1]
                self.cursor[reader.sources[number].key] = end
            tails.append(lines)
        for entry in merge.last(tails, count, merge.entries):
            self._put(logs.record(entry, reader.sources[entry[1]]))

    def _pass(self, reader: RemoteReader) -> None:
        streams = reader.streams(False)
        tracked = [logs.tracked(reader.sources[number], stream, self.cursor) for number, stream in enumerate(streams)]
        for batch in merge.merged(tracked, merge.entries):
            for entry in batch:
                source = reader.sources[entry[1]]
                if not self._put(logs.record(entry, source)):
                    return
                self.cursor[source.key] += len(entry[2]) + 1

    def _put(self, record: Record) -> bool:
        """Hand a record out, however long nobody takes it; False once nobody wants any more."""
        while not self._stopped.is_set():
            try:
                self._queue.put(record, timeout=PAUSE)
                return True
            except Full:
                continue
        return False


def feed(run: Run, job: Job, attempts: int) -> Feed:
    """The feed that a run has: its hosts' while they have more than this machine, else this machine's own."""
    far = run.files.hosts.exists() and not run.files.logs_whole.exists()
    return (RemoteFeed if far else Feed)(run, job, attempts)
