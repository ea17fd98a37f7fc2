"""The ranks of this machine during one attempt: started, watched, ended together, and nothing of them left behind."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from .cgroup import ControlGroup
from .log import LIMIT
from .loop import Loop, ended_children
from .processes import find_strays, kill
from .rank import Rank, Stream, for_attempt
from .words import note

SWEEP = 5.0  # seconds to kill what has outlived its grace

Report = Callable[[Dict[str, Any]], None]


class Crew:
    """Ranks from their start to the last trace of them.

    ``report`` hears ``started``, ``ready`` and ``ended`` of each rank, and ``done`` once nothing of the attempt is left
    on this machine. A rank is ready when its file says so.
    """

    def __init__(self, launch: Dict[str, Any], attempt: int, loop: Loop, report: Report) -> None:
        self._launch, self._loop, self._report = launch, loop, report
        self._run, self._host = launch["run"], launch.get("host", "localhost")
        self.folder = os.path.join(os.path.dirname(launch["attempt_folder"]), f"attempt-{attempt}")
        limit = launch.get("log_limit", LIMIT)
        self.ranks = [Rank(for_attempt(spec, self.folder, attempt), limit) for spec in launch["ranks"]]
        self._group = ControlGroup(self._run, self._host)
        self._attempt = attempt
        self._why = ""
        self._ladder: List[Tuple[float, Callable[[], None]]] = []
        self._sweep_until = 0.0
        self.done = False

    def start(self, env: Dict[str, str], fds: Sequence[int], first_env: Dict[str, str], first_fds: List[int]) -> None:
        """Start all ranks with the environment they share; rank 0 gets more than the others."""
        self._group.make()
        common = {**env, "VPIPE_RUN": self._run, "VPIPE_HOST": self._host, "VPIPE_ATTEMPT": str(self._attempt)}
        for rank in self.ranks:
            more, keep = (first_env, first_fds) if rank.number == 0 else ({}, [])
            self._start(rank, {**common, **more}, [*fds, *keep])

    def _start(self, rank: Rank, env: Dict[str, str], fds: Sequence[int]) -> None:
        try:
            rank.start(env, fds, self._group)
        except (OSError, ValueError) as error:
            self._ended(rank, None, None, f"cannot start {rank.spec['argv'][0]}: {error}")
            return
        self._report({"say": "started", "rank": rank.number, "pid": rank.pid})
        for stream in rank.streams:
            self._loop.watch(stream.fd, partial(self._pump, stream))

    def _pump(self, stream: Stream) -> None:
        if stream.pump() == 0:
            self._loop.forget(stream.fd)
            stream.close()

    @property
    def alive(self) -> List[Rank]:
        """Ranks that have not ended."""
        return [rank for rank in self.ranks if rank.exit is None]

    def turn(self) -> None:
        """Look at everything once. Never waits."""
        self._reap()
        self._look_for_ready()
        for rank in self.ranks:
            for stream in rank.streams:
                stream.flush()
        while self._ladder and time.monotonic() >= self._ladder[0][0]:
            self._ladder.pop(0)[1]()
        if not self.alive and not self.done:
            self._sweep()

    def progress(self) -> Dict[str, Any]:
        """Of each living rank that says it: what it has done and does, and whether it is stopped."""
        said = {rank: rank.progress() for rank in self.alive if rank.pid}
        return {str(rank.number): [*fields, rank.is_stopped(self._run)] for rank, fields in said.items() if fields}

    def end(self, why: str, window: float, stacks: bool = False) -> None:
        """End what lives: asked after ``window`` seconds, forced after the grace, given up after ``SWEEP`` more."""
        if self._why:
            return
        self._why = why
        if stacks:
            for rank in self.alive:
                rank.dump_stacks(self._run)
        ask = time.monotonic() + window
        force = ask + self._launch["grace"]
        self._ladder = [(ask, self._ask), (force, self._force), (force + SWEEP, self._give_up)]

    def _look_for_ready(self) -> None:
        for rank in self.ranks:
            if not rank.ready and os.path.exists(rank.spec["ready"]):
                rank.ready = True
                self._report({"say": "ready", "rank": rank.number})

    def _reap(self) -> None:
        for pid, status in ended_children():
            for rank in self.alive:
                if rank.pid == pid:
                    self._look_for_ready()
                    killed = os.WIFSIGNALED(status)
                    code, number = (None, os.WTERMSIG(status)) if killed else (os.WEXITSTATUS(status), None)
                    self._ended(rank, code, number)

    def _ended(self, rank: Rank, code: Optional[int], number: Optional[int], told: str = "") -> None:
        if rank.signalled and not told:
            told = f"ended by vpipe {self._why}"
        rank.end(code, number, told)
        assert rank.exit
        self._report({"say": "ended", **{key: value for key, value in rank.exit.items() if key != "last_lines"}})

    def _ask(self) -> None:
        self._reap()  # who has ended already was not ended by us
        for rank in self.alive:
            rank.signal(signal.SIGTERM)
            rank.signal(signal.SIGCONT)  # a stopped process hears nothing else

    def _force(self) -> None:
        for rank in self.alive:
            rank.signal(signal.SIGKILL)
        self._group.kill()

    def _give_up(self) -> None:
        self._reap()
        for rank in self.alive:
            self._ended(rank, None, None, f"process {rank.pid} is still there {SWEEP:g} s after SIGKILL")

    def _sweep(self) -> None:
        """Kill what ranks have left behind; once nothing is left, or after ``SWEEP`` seconds, this crew is done."""
        self._sweep_until = self._sweep_until or time.monotonic() + SWEEP
        strays = find_strays(self._run, self._host, adopted=True)
        for pid in strays:
            note(f"killing process {pid}, left behind by a rank {kill(pid)}".rstrip())
        if (self._group.kill() or strays) and time.monotonic() < self._sweep_until:
            return
        self._group.remove()
        for rank in self.ranks:
            for stream in rank.streams:
                if stream.is_open:
                    self._loop.forget(stream.fd)
            rank.close()
        self.done = True
        self._report({"say": "done"})
