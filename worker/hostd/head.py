"""The hostd that decides for all machines: it starts attempts, ends them, says how they ended, and starts them again.

It is the one on the machine of rank 0. Its events.jsonl is the truth about the run.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Callable, Dict, Optional

from .address import socket_environment, towards
from .attempt import Attempt, Failure
from .crew import Crew
from .link import BEAT, Door, Link, LinkLost, nonce_of
from .loop import Loop
from .pace import Pace
from .words import Appender, note, now, seal

WINDOW = 1.0  # seconds the other ranks have, once one has failed, to log what they saw of it
JOIN_LIMIT = 35.0  # seconds for all machines to join at the start
REJOIN_LIMIT = 30.0  # and before another attempt
START_MARGIN = 15.0  # beyond start_timeout, which the ranks keep by themselves


class Head:
    """The supervisor of rank 0's machine.

    Args:
        lock: the descriptor of the run's lock, which the ranks inherit.
        secret: what shows that a machine belongs to the run.
        peers: an address of every other machine.
        claim: makes the folder of an attempt, which can be done once. Raises OSError.
    """

    def __init__(
        self,
        launch: Dict[str, Any],
        lock: int,
        secret: str,
        peers: Dict[str, str],
        claim: Callable[[Dict[str, Any], int], None],
    ) -> None:
        self._launch, self._lock, self._secret, self._claim = launch, lock, secret, claim
        self._host = launch.get("host", "localhost")
        self._gang = launch.get("gang") or launch["ranks"]
        self._members = sorted({rank["host"] for rank in self._gang} - {self._host})
        self._address = towards(peers[self._members[0]]) if self._members else "127.0.0.1"
        self._events = Appender(launch["events"])
        self._loop = Loop()
        self._links: Dict[str, Link] = {}
        self._door: Optional[Door] = None
        self._number = launch["attempt"]
        self._attempt: Optional[Attempt] = None
        self._crew: Optional[Crew] = None
        self._ended_before: Optional[Failure] = None
        self._beat = 0.0

    def run(self, on_start: Callable[[str], None]) -> None:
        """Run to the end. ``on_start`` is called after the first event, with the address where members call."""
        if self._members:
            self._door = Door(self._address, self._secret, self._welcome)
            self._loop.watch(self._door.socket, lambda: None)
        self._event("state", state="starting", hostd=os.getpid(), host=self._host)
        on_start(self._door.address if self._door else "")
        missing = self._gather(self._launch.get("join_limit", JOIN_LIMIT))
        if missing:
            failure = {**self._first_rank(missing), "step": None}
            self._finish("failed", first_failure={**failure, "cause": f"host {missing} did not join the run"})
            return
        while True:
            self._run_attempt()
            if not self._again():
                break
        self._conclude()

    def _gather(self, limit: float) -> str:
        """Wait until every machine has joined, or nobody wants to run any more. Returns one that is missing."""
        deadline = time.monotonic() + limit
        while len(self._links) < len(self._members):
            if self._stop_wanted():
                return ""
            if time.monotonic() > deadline:
                return str(next(host for host in self._members if host not in self._links))
            self._turn()
        return ""

    def _run_attempt(self) -> None:
        """Start an attempt on every machine and see it through until nothing of it is left."""
        pace = Pace(self._launch.get("stall_timeout", float("inf")), self._launch.get("stall_floor"))
        attempt = self._attempt = Attempt(self._number, self._gang, pace)
        reason = self._stop_wanted()
        if reason:
            attempt.verdict, attempt.why = "stopped", reason
            return
        self._crew = Crew(self._launch, self._number, self._loop, lambda message: self._hear(self._host, message))
        store = socket.create_server((self._address, 0), backlog=128)
        address = "%s:%d" % store.getsockname()[:2]
        self._tell({"do": "start", "attempt": self._number, "store": address})
        env = {"VPIPE_NONCE": nonce_of(self._secret, self._number), "VPIPE_STORE": address}
        more = {"VPIPE_STORE_FD": str(store.fileno())}
        if self._launch.get("head"):
            env = {**env, **socket_environment(self._address)}
        self._crew.start(env, [self._lock], more, [store.fileno()])
        store.close()  # from here on only rank 0 listens, so its end refuses the others instead of leaving them waiting
        while attempt.left:
            self._turn()
            self._judge(attempt)
        self._crew = None

    def _turn(self) -> None:
        self._loop.turn()
        if self._door:
            self._door.look()
        for host, link in list(self._links.items()):
            try:
                for message in link.receive():
                    self._hear(host, message)
                link.flush()
            except (LinkLost, ValueError) as error:
                self._lose(host, str(error))
        if self._crew:
            self._crew.turn()

    def _judge(self, attempt: Attempt) -> None:
        """Whether the attempt must end, for a reason that no rank has told."""
        if self._crew and time.monotonic() - self._beat > BEAT:
            self._beat = time.monotonic()
            attempt.moves.hear(self._crew.progress())
        if attempt.verdict:
            return
        stop = self._stop_wanted()
        stuck = attempt.moves.stuck() if attempt.running else None
        late = time.monotonic() - attempt.began > self._launch.get("start_timeout", float("inf")) + START_MARGIN
        if stop and (self._crew is None or self._crew.alive or self._members):
            self._end("stopped", stop, 0.0)
        elif stuck:
            attempt.fail(**stuck)
            self._end("failed", "because the run was stuck", WINDOW, stacks=True)
        elif late and not attempt.running:
            waited = f"not ready within {self._launch['start_timeout']:g} s (run.start_timeout)"
            attempt.fail(attempt.unready()[0], waited)
            self._end("failed", "because the run did not start in time", WINDOW, stacks=True)

    def _stop_wanted(self) -> str:
        if os.path.exists(self._launch["stop"]):
            return "because a stop was asked for"
        return "because hostd got SIGTERM" if self._loop.terminated else ""

    def _hear(self, host: str, message: Dict[str, Any]) -> None:
        """Take in what a machine, this one included, says of the attempt."""
        attempt, say = self._attempt, message.get("say")
        if attempt is None or message.get("attempt", attempt.number) != attempt.number:
            return
        if say == "started":
            self._event("rank-start", rank=message["rank"], pid=message["pid"], host=host)
        elif say == "ready" and attempt.ready(message["rank"]):
            self._event("state", state="running")
        elif say == "ended":
            self._rank_ended(attempt, message)
        elif say == "progress":
            attempt.moves.hear(message["ranks"])
        elif say == "broken":
            self._host_failed(attempt, host, message["cause"])
        elif say == "terminated" and not attempt.verdict:
            self._end("stopped", f"because hostd on {host} got SIGTERM", 0.0)
        elif say == "done":
            attempt.left.discard(host)

    def _rank_ended(self, attempt: Attempt, record: Dict[str, Any]) -> None:
        facts = {key: record[key] for key in ("rank", "code", "signal", "cause", "host")}
        self._event("rank-exit", **facts)
        if attempt.ended(record) and not attempt.verdict:
            self._end("failed", "because another rank had failed", WINDOW)

    def _host_failed(self, attempt: Attempt, host: str, cause: str) -> None:
        attempt.fail(self._first_rank(host)["rank"], f"host {host}: {cause}")
        attempt.left.discard(host)
        if not attempt.verdict:
            self._end("failed", f"because host {host} failed", WINDOW)

    def _end(self, verdict: str, why: str, window: float, stacks: bool = False) -> None:
        """Decide how the attempt ends, and tell every machine to end its ranks."""
        assert self._attempt
        self._attempt.verdict, self._attempt.why = verdict, why
        self._tell({"do": "end", "why": why, "window": window, "stacks": stacks})
        if self._crew:
            self._crew.end(why, window, stacks)

    def _tell(self, message: Dict[str, Any]) -> None:
        for host, link in list(self._links.items()):
            try:
                link.send(message)
            except LinkLost as error:
                self._lose(host, str(error))

    def _welcome(self, link: Link, hello: Dict[str, Any]) -> None:
        host = str(hello.get("host"))
        try:
            if host not in self._members or hello.get("run") != self._launch["run"]:
                raise LinkLost(f"{host} has no rank in this run")
            if host in self._links:
                raise LinkLost(f"a hostd of {host} is here already")
            link.send({"welcome": host})
        except LinkLost as error:
            note(f"turned away {host}: {error}")
            link.close()
            return
        self._links[host] = link
        self._loop.watch(link.socket, lambda: None)

    def _lose(self, host: str, reason: str) -> None:
        """A machine is gone: its ranks end by themselves, all others by the head's word."""
        link = self._links.pop(host, None)
        if link is None:
            return
        self._loop.forget(link.socket)
        link.close()
        self._event("host-lost", host=host, reason=reason)
        attempt = self._attempt
        if attempt and host in attempt.left:
            attempt.lost(host, reason)
            if not attempt.verdict:
                self._end("failed", f"because host {host} was lost", WINDOW)

    def _again(self) -> bool:
        """Whether there is another attempt: the failure may heal, restarts are left, and all machines are there."""
        attempt = self._attempt
        assert attempt
        first = attempt.first
        used = self._number - self._launch["attempt"]
        if (
            attempt.verdict != "failed"
            or not first
            or first.get("permanent")
            or used >= self._launch.get("restarts", 0)
        ):
            return False
        if self._stop_wanted():
            attempt.verdict, attempt.why = "stopped", self._stop_wanted()
            return False
        self._number += 1
        self._event("state", state="restarting", first_failure=attempt.first_failure, failed_attempt=attempt.number)
        missing = self._gather(REJOIN_LIMIT)  # who was lost comes back only once its ranks have ended
        try:
            if not missing:
                self._claim(self._launch, self._number)
                return True
            attempt.fail(self._first_rank(missing)["rank"], f"host {missing} did not come back")
        except OSError as error:
            attempt.fail(0, f"cannot make the folder of attempt {self._number}: {error}")
        return False

    def _conclude(self) -> None:
        attempt = self._attempt
        assert attempt
        if attempt.verdict == "failed":
            self._finish("failed", first_failure=attempt.first_failure)
        else:
            self._finish(attempt.verdict or "succeeded", why=attempt.why)

    def _finish(self, state: str, **more: Any) -> None:
        """Write the final state, after everything else, and send the members home."""
        self._event("state", state=state, **more)
        self._tell({"do": "leave", "state": state})
        for link in self._links.values():
            link.close()

    def _first_rank(self, host: str) -> Dict[str, Any]:
        keys = ("rank", "stage", "host")
        return next({key: rank[key] for key in keys} for rank in self._gang if rank["host"] == host)

    def _event(self, event: str, **fields: Any) -> None:
        record = {"time": now(), "event": event, "attempt": self._number, **fields}
        self._events.write(seal(record).encode(), durable=True)
