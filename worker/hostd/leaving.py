"""The head inside an allocation of Slurm, which may end before the run does: then the run is not over.

What ends an attempt without ending the run: ranks that saved and left because they were asked to (``LEFT``), a SIGTERM
that nobody of vpipe sent, a lost node. The head then says ``restarting``; ``slurm end`` queues the job again.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any, Dict

from .allocation import JOIN_LIMIT, Allocation
from .attempt import Attempt
from .head import Head
from .words import Refused, note, read_object, write_atomic

LEFT = 75
"""Exit status of a rank that has saved and left; EX_TEMPFAIL."""
ADDRESS = "head.json"
FENCE_EVERY = 1.0  # seconds


class AllocationHead(Head):
    """The supervisor of rank 0's node."""

    _left = _lost_node = _fenced = False
    _looked = 0.0

    def _stop_wanted(self) -> str:
        if time.monotonic() - self._looked > FENCE_EVERY:
            self._looked = time.monotonic()
            path, secret = self._launch["fence"]
            self._fenced = self._fenced or read_object(path).get("secret", secret) != secret
        return "because another allocation has the run" if self._fenced else super()._stop_wanted()

    def _rank_ended(self, attempt: Attempt, record: Dict[str, Any]) -> None:
        if record["code"] == LEFT:
            self._left = True
            self._event("rank-exit", **{key: record[key] for key in ("rank", "code", "signal", "cause", "host")})
            attempt.ended({**record, "code": 0})
        else:
            super()._rank_ended(attempt, record)

    def _lose(self, host: str, reason: str) -> None:
        if host in self._links and not self._left:
            self._lost_node = True
        super()._lose(host, reason)

    def _again(self) -> bool:
        return not self._interrupted() and super()._again()

    def _interrupted(self) -> bool:
        """Whether Slurm has ended the ranks, or asked this hostd to."""
        return self._was_signalled() and not os.path.exists(self._launch["stop"])

    def _was_signalled(self) -> bool:
        first = (self._attempt and self._attempt.first) or {}
        return self._loop.terminated or first.get("signal") == signal.SIGTERM or self._told_to_end()

    def _told_to_end(self) -> bool:
        """Whether the hostd of another node was."""
        attempt = self._attempt
        return bool(attempt and attempt.verdict == "stopped")

    def _finish(self, state: str, **more: Any) -> None:
        """The run's final state, or ``restarting`` where the run goes on in another allocation."""
        if state == "failed" and self._was_signalled() and os.path.exists(self._launch["stop"]):
            state, more = "stopped", {"why": "because a stop was asked for"}  # the ranks heard of it before hostd did
        why = ""
        if state == "succeeded" and self._left:
            why = "saved, because the allocation ends soon"
        elif state != "succeeded" and self._interrupted():
            why = "Slurm ended the attempt"
        elif state == "failed" and self._lost_node:
            why = str((more.get("first_failure") or {}).get("cause", "a node was lost"))
        if not why:
            super()._finish(state, **more)
            return
        queue = {"requeue": True} if self._left or (self._lost_node and not self._interrupted()) else {}
        super()._finish("restarting", why=why, **(queue or {"interrupted": True}))

    def _event(self, event: str, **fields: Any) -> None:
        if self._fenced:
            note(f"another allocation has the run; not written: {event} {fields}")
        else:
            super()._event(event, **fields)


def tell_address(folder: str, allocation: Allocation, address: str) -> None:
    """Leave the head's address for the other nodes."""
    told = {"address": address, "of": [allocation.job, allocation.restart]}
    write_atomic(os.path.join(folder, ADDRESS), json.dumps(told) + "\n")


def call_head(folder: str, allocation: Allocation) -> str:
    """The head's address, once it is there. Raises Refused.

    Listing a folder brings what other nodes have written even where shared storage remembers that there was nothing.
    """
    deadline = time.monotonic() + JOIN_LIMIT
    while time.monotonic() < deadline:
        if ADDRESS in os.listdir(folder):
            told = read_object(os.path.join(folder, ADDRESS))
            if told.get("of") == [allocation.job, allocation.restart]:
                return str(told["address"])
        time.sleep(0.2)
    raise Refused(f"no hostd began on the first node within {JOIN_LIMIT:g} s")
