"""One worker process, from its argv to its exit record; what it prints becomes stamped records of its log."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Sequence, Tuple

from .cgroup import ControlGroup
from .log import LIMIT, RankLog
from .processes import die_with, stat_of, workers
from .words import Appender, note, now, read_object, signal_name, stamp, write_atomic

LINE_LIMIT = 64 * 1024
SILENCE = 1.0  # seconds after which the beginning of a line is written, though its end may still come
PATIENCE = 10.0  # and so long after it began, where it is never silent: a progress bar that is redrawn
F_GETPIPE_SZ = 1032
PROGRESS_BYTES = 1024
MEANING = {
    "SIGKILL": " (out of memory, or kill -9)",
    "SIGSEGV": " (a crash in native code)",
    "SIGABRT": " (native code gave up; see the last lines)",
    "SIGBUS": " (often a full /dev/shm)",
}
FILES = ("log", "error", "ready", "exit", "progress", "stacks")
"""The keys of a rank's launch that name files in the attempt's folder."""


class Stream:
    """One pipe of a rank."""

    def __init__(self, fd: int, letter: str, log: Appender, last: Deque[Tuple[str, bytes]]) -> None:
        os.set_blocking(fd, False)
        self.fd, self._letter, self._log, self._last = fd, letter, log, last
        self._partial = b""
        self._began = self._grew = 0.0  # when the partial line did
        self._open = True

    def close(self) -> None:
        """Close the pipe; nothing more can come."""
        if self._open:
            os.close(self.fd)
        self._open = False

    @property
    def is_open(self) -> bool:
        """Whether something may still come."""
        return self._open

    def pump(self) -> Optional[int]:
        """Move at most 64 KiB. Returns the bytes moved, 0 at the end of the stream, None if nothing is there now."""
        try:
            data = os.read(self.fd, LINE_LIMIT)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        lines = (self._partial + data).split(b"\n")
        self._grew = time.monotonic()
        self._began = self._began if self._partial and len(lines) == 1 else self._grew
        self._partial = lines.pop()
        if self._partial and (not data or len(self._partial) > LINE_LIMIT):
            lines.append(self._partial)
            self._partial = b""
        self._record(lines)
        return len(data)

    def flush(self) -> None:
        """Write a line without its end that has waited long enough, as a record of its own."""
        moment = time.monotonic()
        if self._partial and (moment - self._grew > SILENCE or moment - self._began > PATIENCE):
            self._record([self._partial])
            self._partial = b""

    def drain(self) -> None:
        """Move all that an ended rank can have left in the pipe, even while a stray goes on writing into it."""
        left = fcntl.fcntl(self.fd, F_GETPIPE_SZ) if self._open else 0
        while left > 0:
            moved = self.pump()
            if not moved:
                break
            left -= moved
        if self._partial:
            self._record([self._partial])
            self._partial = b""

    def _record(self, lines: Sequence[bytes]) -> None:
        head = f"{stamp()} {self._letter} ".encode()
        self._last.extend((self._letter, line[:2000]) for line in lines)
        if lines:
            self._log.write(b"".join(head + line + b"\n" for line in lines))


class Rank:
    """One worker process. ``spec`` is its part of the launch, for the attempt at hand; its log is cut at ``limit``."""

    def __init__(self, spec: Dict[str, Any], limit: int = LIMIT) -> None:
        self.spec = spec
        self.number: int = spec["rank"]
        self.pid = 0
        self.started = now()
        self.signalled = self.ready = False
        self.exit: Optional[Dict[str, Any]] = None
        self.streams: List[Stream] = []
        self._inside: List[int] = []
        self._log = RankLog(spec["log"], limit)
        self._last: Deque[Tuple[str, bytes]] = deque(maxlen=30)

    def start(self, env: Dict[str, str], fds: Sequence[int], group: ControlGroup) -> None:
        """Start the process in a session of its own, to die with hostd. Raises OSError if there is no such program.

        Args:
            group: the control group that it enters.
        """
        process = subprocess.Popen(
            self.spec["argv"],
            env=self._environment({**env, "VPIPE_RANK": str(self.number)}),
            cwd=self.spec["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=fds,
            preexec_fn=die_with(os.getpid(), group),
        )
        assert process.stdout and process.stderr
        self.pid = process.pid
        process.returncode = 0  # hostd waits for it itself; Popen must not
        for pipe, letter in ((process.stdout, "o"), (process.stderr, "e")):
            self.streams.append(Stream(os.dup(pipe.fileno()), letter, self._log, self._last))
            pipe.close()

    def _environment(self, ours: Dict[str, str]) -> Dict[str, str]:
        """The launch's own environment goes before what this machine gives, VPIPE_ variables before both.

        Where the rank is in a container, ``env_prefix`` is what its runtime wants before the names that go inside.
        """
        given = self.spec["env"]
        kept = {name: value for name, value in ours.items() if name.startswith("VPIPE_") or name not in given}
        inherited = {name: os.environ[name] for name in self.spec.get("inherit", ()) if name in os.environ}
        prefix = self.spec.get("env_prefix", "")
        inside = {prefix + name: value for name, value in kept.items()} if prefix else {}
        return {**inherited, **given, **kept, **{name: value for name, value in inside.items() if name not in given}}

    def signal(self, number: int) -> None:
        """Send a signal to the rank and to all it started in its own process group."""
        self.signalled = True
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError) as error:
            note(f"rank {self.number}: {error}")

    def dump_stacks(self, run: str) -> None:
        """Ask the worker for the stacks of its threads, if it has said (by the file) that it listens."""
        if not os.path.exists(self.spec.get("stacks", "")):
            return
        for pid in workers(run, self.number):
            try:
                os.kill(pid, signal.SIGUSR2)
            except (ProcessLookupError, PermissionError) as error:
                note(f"rank {self.number}: no stacks: {error}")

    def progress(self) -> List[str]:
        """As worker.progress writes it: things done so far, step, what it does, what it waits for, a limit of its own.

        Empty where the rank has said nothing, or is just writing.
        """
        try:
            with open(self.spec.get("progress", ""), "rb") as file:
                fields = file.read(PROGRESS_BYTES).split(b"\0", 1)[0].decode().split("\t")
        except (OSError, ValueError):
            return []
        return fields if len(fields) == 5 else []

    def is_stopped(self, run: str) -> bool:
        """Whether a signal has frozen the process, or in a container the worker inside."""
        if self.spec.get("env_prefix") and not self._inside:
            self._inside = workers(run, self.number)
        return any(stat_of(pid)[0] in "Tt" for pid in [self.pid, *self._inside])

    @property
    def bad(self) -> bool:
        """Whether the rank ended, and not with status 0."""
        return self.exit is not None and self.exit["code"] != 0

    def end(self, code: Optional[int], number: Optional[int], told: str = "") -> None:
        """Fill the exit record and write it. ``told`` is the cause where hostd knows it better than the rank."""
        for stream in self.streams:
            stream.drain()
        if self.spec.get("env_prefix") and code is not None and 128 < code < 160:
            number, code = code - 128, None  # how a container's runtime tells of a signal
        error = self._own_words()
        self.exit = {key: self.spec[key] for key in ("rank", "stage", "host", "device")}
        self.exit.update(pid=self.pid, code=code, signal=number, started=self.started, ended=now())
        self.exit["ended_by_us"] = self.signalled
        self.exit["cause"] = told or self._cause(code, number, error.get("message", ""))
        self.exit["consequence"] = error.get("consequence") is True and self.bad
        self.exit["permanent"] = error.get("permanent") is True and self.bad
        self.exit["step"] = error["step"] if isinstance(error.get("step"), int) else self._last_step()
        self.exit["last_lines"] = [line.decode(errors="replace") for _, line in self._last]
        try:
            write_atomic(self.spec["exit"], json.dumps(self.exit, indent=1) + "\n")
        except OSError as failure:
            note(f"cannot write {self.spec['exit']}: {failure}")

    def _own_words(self) -> Dict[str, Any]:
        """What a rank wrote of its own failure; empty where it wrote nothing, or only half."""
        words = read_object(self.spec["error"])
        return words if isinstance(words.get("message"), str) else {}

    def _last_step(self) -> Optional[int]:
        step = (self.progress() or ["", ""])[1]
        return int(step) if step.isdigit() and step != "0" else None

    def _cause(self, code: Optional[int], number: Optional[int], message: str) -> str:
        if code == 0:
            return "finished"
        if number is not None:
            name = signal_name(number)
            how = f"killed by {name}{MEANING.get(name, '')}"
        else:
            how = f"exit status {code}"
            errors = [line for letter, line in self._last if letter == "e" and line.strip()]
            message = message or (errors[-1].decode(errors="replace") if errors else "")
        return f"{how}: {message.strip().splitlines()[0]}" if message.strip() else how

    def close(self) -> None:
        """Take in the last output and let go of the files."""
        for stream in self.streams:
            stream.drain()
            stream.close()
        self._log.close()


def for_attempt(spec: Dict[str, Any], folder: str, attempt: int) -> Dict[str, Any]:
    """A rank's part of the launch for another attempt: its files in that one's folder, its number in argv."""
    argv = list(spec["argv"])
    for index in range(1, len(argv)):
        if argv[index - 1] == "--attempt":
            argv[index] = str(attempt)
    files = {key: os.path.join(folder, os.path.basename(spec[key])) for key in FILES if key in spec}
    return {**spec, **files, "argv": argv}
