"""The hostd of a machine that is not the head's: it obeys the head, tells it everything, and never outlives its lease.

When the head falls silent, this machine ends its ranks by itself: whatever the head decides meanwhile, no rank of an
old attempt is left here.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Callable, Dict, Optional

from .address import socket_environment
from .crew import Crew
from .head import REJOIN_LIMIT
from .link import BEAT, Link, LinkLost, call, nonce_of
from .loop import Loop
from .words import note, write_atomic

CALL_SECONDS = 10.0


class Member:
    """The supervisor of one machine that the head leads.

    Args:
        lock: the descriptor of this machine's lock, which the ranks inherit.
        secret: what shows that this machine belongs to the run.
        head: where the head listens, ``host:port``.
        claim: makes the folder of an attempt, which can be done once. Raises OSError.
    """

    def __init__(
        self,
        launch: Dict[str, Any],
        lock: int,
        secret: str,
        head: str,
        claim: Callable[[Dict[str, Any], int], None],
    ) -> None:
        self._launch, self._lock, self._secret, self._head, self._claim = launch, lock, secret, head, claim
        self._hello = {"host": launch["host"], "run": launch["run"]}
        self._loop: Loop
        self._link: Optional[Link] = None
        self._crew: Optional[Crew] = None
        self._number = 0
        self._lost = ""
        self._told = 0.0
        self._leave = False

    def join(self) -> None:
        """Connect to the head. Raises LinkLost."""
        self._link = call(self._head, self._secret, self._hello, CALL_SECONDS)

    def run(self, on_start: Callable[[str], None]) -> None:
        """Obey until the head says leave, or is gone for good. ``on_start`` is called once this hostd is ready."""
        self._loop = Loop()
        assert self._link
        self._loop.watch(self._link.socket, lambda: None)
        on_start("")
        self._obey_to_the_end()
        end = os.path.join(os.path.dirname(self._launch["events"]), f"end-{self._launch['host']}.json")
        write_atomic(end, json.dumps({"head_lost": self._link is None, "reason": self._lost}) + "\n")

    def _obey_to_the_end(self) -> None:
        while not self._leave:
            self._turn()
            if self._link is None and self._crew is None and not self._rejoin():
                return
        while self._crew:  # told to leave with ranks alive: they go first
            self._crew.end("because the run was over", 0.0)
            self._turn()

    def _turn(self) -> None:
        self._loop.turn()
        try:
            if self._link:
                for message in self._link.receive():
                    self._obey(message)
                self._link.flush()
        except (LinkLost, ValueError, KeyError) as error:
            self._lose_head(str(error))
        if self._crew:
            self._crew.turn()
            if self._crew and self._crew.done:
                self._crew = None
        self._tell_progress()

    def _obey(self, message: Dict[str, Any]) -> None:
        do = message.get("do")
        if do == "start":
            self._start(message["attempt"], message["store"])
        elif do == "end" and self._crew:
            self._crew.end(message["why"], message["window"], message["stacks"])
        elif do == "leave":
            note(f"the run has ended: {message['state']}")
            self._leave = True

    def _start(self, number: int, store: str) -> None:
        assert self._link
        self._number = number
        try:
            if number > self._launch["attempt"]:
                self._claim(self._launch, number)
            self._crew = Crew(self._launch, number, self._loop, self._say)
        except OSError as error:
            self._say({"say": "broken", "cause": f"attempt {number} cannot begin: {error}"})
            return
        env = {"VPIPE_NONCE": nonce_of(self._secret, number), "VPIPE_STORE": store}
        self._crew.start({**env, **socket_environment(self._link.socket.getsockname()[0])}, [self._lock], {}, [])

    def _say(self, message: Dict[str, Any]) -> None:
        """Tell the head; where it is gone, nobody needs to know."""
        if self._link is None:
            return
        try:
            self._link.send({**message, "attempt": self._number})
        except LinkLost as error:
            self._lose_head(str(error))

    def _tell_progress(self) -> None:
        if self._crew and time.monotonic() - self._told > BEAT:
            self._told = time.monotonic()
            self._say({"say": "progress", "ranks": self._crew.progress()})
        if self._loop.terminated:
            self._say({"say": "terminated"})
            if self._crew:
                self._crew.end("because hostd got SIGTERM", 0.0)
            self._leave = self._leave or self._crew is None

    def _lose_head(self, reason: str) -> None:
        self._lost = reason
        note(f"lost the head ({self._launch['head']}): {reason}")
        if self._link:
            self._loop.forget(self._link.socket)
            self._link.close()
            self._link = None
        if self._crew:
            self._crew.end(f"because the head, {self._launch['head']}, was lost", 0.0)

    def _rejoin(self) -> bool:
        """Come back to the head, which may want another attempt; False once it is gone for good."""
        deadline = time.monotonic() + (REJOIN_LIMIT if self._launch.get("restarts", 0) else 0.0)
        while time.monotonic() < deadline and not self._loop.terminated:
            try:
                self._link = call(self._head, self._secret, self._hello, 2.0)
            except LinkLost:
                self._loop.turn()
                continue
            self._loop.watch(self._link.socket, lambda: None)
            return True
        return False
