"""Logs on the hosts of a run, asked for there: a question about 10 GB moves no more than its answer.

One channel per host. A connection that breaks is made again and goes on behind the last byte that came.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import Queue
from threading import Thread

from vpipe_cli.onhost import send
from vpipe_cli.runs.logs import Cursor, Source
from vpipe_cli.runs.reading import Query
from vpipe_cli.transport.base import Channel, Transport
from worker import logfilter
from worker.errors import UnreachableError
from worker.logfilter import CAUGHT_UP, DONE, FRAME, Block

SILENCE = 15.0
"""Seconds without a frame, of which a follower gets several each second, after which a host is given up."""
AGAIN = 2.0
AHEAD = 16
"""Frames of a host that may wait to be merged: 4 MiB or so."""

Dial = Callable[[str], Transport]
Frame = tuple[int, int, bytes]


class Channelled:
    """The logs of one host, frame by frame."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._frames: Queue[Frame | Exception] = Queue(AHEAD)
        self._closed = False
        Thread(target=self._pump, daemon=True).start()

    def next(self) -> Frame:
        """The next frame. Raises UnreachableError if the connection broke."""
        item = self._frames.get()
        if isinstance(item, Exception):
            raise UnreachableError(str(item))
        return item

    def close(self) -> None:
        """End the channel; the program on the host ends with its input."""
        self._closed = True
        self._channel.close()
        while not self._frames.empty():
            self._frames.get_nowait()

    def _pump(self) -> None:
        unread = bytearray()
        try:
            while not self._closed:
                piece = self._channel.read(SILENCE)
                if not piece:
                    break
                unread += piece
                self._split(unread)
            self._frames.put(UnreachableError("the connection broke"))
        except Exception as error:
            self._frames.put(error)

    def _split(self, unread: bytearray) -> None:
        begin = 0
        while len(unread) - begin >= FRAME.size:
            number, offset, size = FRAME.unpack_from(unread, begin)
            end = begin + FRAME.size + size
            if len(unread) < end:
                break
            self._frames.put((number, offset, bytes(unread[begin + FRAME.size : end])))
            begin = end
        del unread[:begin]


class HostLogs:
    """Some logs of one host, in passes: all there is by now, then again."""

    def __init__(self, host: str, folder: str, dial: Dial, query: Query, say: Callable[[str], None]) -> None:
        self._host, self._folder, self._dial, self._query, self._say = host, folder, dial, query, say
        self._sources: list[tuple[int, Source]] = []
        self._cursor: Cursor = {}
        self._waiting: dict[int, deque[Block]] = {}
        self._channel: Channelled | None = None
        self._passed = self._last = self.ended = self.lost = False
        self._not_before = 0.0

    def add(self, number: int, source: Source) -> None:
        """One log more, from the next pass on."""
        self._sources.append((number, source))
        self._waiting[number] = deque()
        self.close()

    def begin(self) -> None:
        """Begin a pass."""
        self._passed = False

    def blocks(self, number: int) -> Iterator[Block]:
        """What is new of a log in this pass."""
        while True:
            while not self._waiting[number] and not self._passed:
                self._receive()
            if not self._waiting[number]:
                return
            yield self._waiting[number].popleft()

    def finish(self) -> None:
        """Nobody writes any more: ask once for what is left, and wait for a host that does not answer no longer."""
        if not self._last:
            self.close()
            self._last, self.lost, self._not_before = True, False, 0.0

    def close(self) -> None:
        """End the connection; the next pass makes another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self.ended = False

    def _receive(self) -> None:
        """Take one frame in; whatever is wrong with the connection ends the pass."""
        if self.ended or time.monotonic() < self._not_before:
            self._passed = True
            return
        try:
            if self._channel is None:
                self._channel = self._open()
            number, offset, data = self._channel.next()
        except (UnreachableError, TimeoutError) as error:
            self._passed = True
            self._fail(error)
            return
        self.lost = False
        if number != CAUGHT_UP:
            self._cursor[dict(self._sources)[number].key] = offset
            self._waiting[number].append((offset, data))
            return
        self._passed = True
        if offset == DONE:
            self.close()
            self.ended = True

    def _fail(self, error: Exception) -> None:
        """Try again later where the logs are followed; raise otherwise."""
        self.close()
        message = str(error).splitlines()[0].removeprefix(f"{self._host}: ")
        if not self._query.follow:
            raise UnreachableError(f"{self._host}: {message}", getattr(error, "hint", ""))
        if not self.lost:
            self._say(f"{self._host}: {message}; trying again")
        self.lost, self._not_before = True, float("inf") if self._last else time.monotonic() + AGAIN

    def _open(self) -> Channelled:
        query = self._query
        logs = [
            [number, f"{self._folder}/attempt-{source.attempt}/{source.path.name}", self._cursor.get(source.key, 0)]
            for number, source in self._sources
        ]
        again = bool(self._cursor)  # then the beginning has been said
        request = {
            "logs": logs,
            "since": None if again else query.since,
            "until": query.until,
            "grep": query.grep,
            "tail": None if again else query.tail,
            "follow": query.follow and not self._last,
        }
        return Channelled(send.start(self._dial(self._host), logfilter.__file__, request, timeout=SILENCE))


class RemoteReader:
    """The chosen logs of a run on several hosts, as ``reading.Reader`` wants them.

    Args:
        find: names the logs anew at every look; a restart adds some.
        folders: the run's folder on each host; where it lies on storage that they share, on the one that is asked.
        dial: connects to a host. Raises UnreachableError.
        say: is told what stands in the way, where it is waited for.
    """

    def __init__(
        self,
        find: Callable[[], list[Source]],
        query: Query,
        folders: dict[str, str],
        dial: Dial,
        say: Callable[[str], None],
    ) -> None:
        self._find = find
        self.sources: list[Source] = []
        self._hosts = {host: HostLogs(host, folder, dial, query, say) for host, folder in folders.items()}

    @property
    def quiet(self) -> bool:
        """Whether nothing more is to be expected: every log is read to its end, or its host does not answer."""
        hosts = [self._of(source) for source in self.sources]
        return bool(hosts) and all(host.ended or host.lost for host in hosts)

    def tails(self, rest: bool) -> list[list[bytes]]:
        """The last lines of each log."""
        return [[line for _, data in stream for line in data.split(b"\n")[:-1]] for stream in self.streams(rest)]

    def streams(self, rest: bool) -> list[Iterator[Block]]:
        """What is new in each log; the hosts know by themselves where nobody writes any more."""
        for source in self._find():
            if source not in self.sources:
                self._of(source).add(len(self.sources), source)
                self.sources.append(source)
        for host in self._hosts.values():
            host.begin()
        return [self._of(source).blocks(number) for number, source in enumerate(self.sources)]

    def _of(self, source: Source) -> HostLogs:
        """Who has a log: the rank's own host, or a login node for all of Slurm's nodes."""
        return self._hosts.get(source.host) or next(iter(self._hosts.values()))

    def finish(self) -> None:
        """The run has ended: what is left is asked for once more; after that ``quiet`` says that this was all."""
        for host in self._hosts.values():
            host.finish()

    def close(self) -> None:
        """End all connections."""
        for host in self._hosts.values():
            host.close()
