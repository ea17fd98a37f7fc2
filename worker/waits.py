"""Around what needs other ranks: all are told of a wait who are to know, and what a backend raises is explained.

Both are entered for every message, so they are classes, not generators: on a processor that has just woken those cost
several times as much.
"""

from __future__ import annotations

import re
from types import TracebackType

from worker import progress, trace
from worker.errors import PeerLost, StallError
from worker.trace import Stopwatch

LIMIT = "run.stall_timeout sets the limit, in seconds"


class Explained:
    """Turns what the backend raises into StallError or PeerLost, which name what it was about.

    Args:
        what: named if it fails.
        kind: of the span that a trace has of it; none if empty. ``minibatch``: that it belongs to.
    """

    def __init__(self, what: object, kind: str = "", minibatch: int = -1) -> None:
        self._what = what
        self._span = trace.span(kind, what, minibatch) if kind and trace.is_on() else None

    def __enter__(self) -> None:
        if self._span is not None:
            self._span.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._span is not None:
            self._span.__exit__(kind, error, at)
        if error is not None:
            _explain(error, self._what)


class Wait(Explained):
    """A wait for others, which ``waiting`` counts and the rank's record of progress names."""

    def __init__(self, what: object, waiting: Stopwatch, kind: str, minibatch: int = -1) -> None:
        super().__init__(what)
        self._span = waiting.during(kind, what, minibatch)

    def __enter__(self) -> None:
        progress.wait_for(self._what)
        super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        progress.go_on()
        super().__exit__(kind, error, at)


def _explain(error: BaseException, what: object) -> None:
    """Raise what ``error`` means; nothing where the backend did not raise it."""
    if isinstance(error, TimeoutError):
        raise StallError(f"waited too long for {what}", LIMIT) from error
    if isinstance(error, ConnectionError):
        raise PeerLost(f"lost the connection while waiting for {what} ({error})") from error
    if isinstance(error, RuntimeError):
        # Gloo says "[its source file:line] what happened [address]. advice".
        text = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).split(". ")[0]
        if "timed out" in text.lower():
            raise StallError(f"waited too long for {what}", LIMIT) from error
        raise PeerLost(f"lost the connection while waiting for {what} ({text})") from error
