"""hostd, one per machine: starts its ranks, keeps their logs and exit records, ends them together.

One file, standard library only, Python 3.8: it must run on a bare host. ``python hostd.py LAUNCH_JSON`` detaches and
returns 0 once the supervisor has written its first event; otherwise it says on stderr why it refused, and returns 1.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections import deque
from datetime import datetime, timezone
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple

TICK = 0.2  # seconds between two looks at the files that speak to hostd
WINDOW = 1.0  # seconds the other ranks have, once one has failed, to log what they saw of it
SWEEP = 5.0  # seconds to kill what has outlived its grace
LINE_LIMIT = 64 * 1024
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, F_GETPIPE_SZ = 1, 36, 1032
MEANING = {
    "SIGKILL": " (out of memory, or kill -9)",
    "SIGSEGV": " (a crash in native code)",
    "SIGABRT": " (native code gave up; see the last lines)",
    "SIGBUS": " (often a full /dev/shm)",
}
BOOT = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
LIBC = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """This run cannot be started; the message says why."""


class Appender:
    """An append-only file of whole lines. A full disk costs lines, never the run."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._torn = False

    def write(self, lines: bytes, durable: bool = False) -> None:
        """Append whole lines in one write, on a line of their own even after a torn one."""
        rest = b"\n" + lines if self._torn else lines
        size = len(rest)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            if durable:
                os.fsync(self._fd)
        except OSError as error:
            note(f"cannot write {self._path}: {error}")
        if len(rest) < size:
            self._torn = bool(rest)


class Stream:
    """One pipe of a rank; what arrives becomes stamped records of the rank's log."""

    def __init__(self, fd: int, letter: str, log: Appender, last: Deque[Tuple[str, bytes]]) -> None:
        os.set_blocking(fd, False)
        self.fd, self._letter, self._log, self._last = fd, letter, log, last
        self._partial = b""
        self._open = True

    def close(self) -> None:
        """Close the pipe; nothing more can come."""
        os.close(self.fd)
        self._open = False

    def pump(self) -> Optional[int]:
        """Move at most 64 KiB. Returns the bytes moved, 0 at the end of the stream, None if nothing is there now."""
        try:
            data = os.read(self.fd, LINE_LIMIT)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        if self._partial and (not data or len(self._partial) > LINE_LIMIT):
            lines.append(self._partial)
            self._partial = b""
        self._record(lines)
        return len(data)

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
    """One worker process, from its argv to its exit record."""

    def __init__(self, spec: Dict[str, Any]) -> None:
        self.spec = spec
        self.pid = 0
        self.started = now()
        self.signalled = False
        self.exit: Optional[Dict[str, Any]] = None
        self.streams: List[Stream] = []
        self._log = Appender(spec["log"])
        self._last: Deque[Tuple[str, bytes]] = deque(maxlen=30)

    def start(self, env: Dict[str, str], fds: Sequence[int]) -> None:
        """Start the process in a session of its own, to die with hostd. Raises OSError if there is no such program."""
        process = subprocess.Popen(
            self.spec["argv"],
            env={**self.spec["env"], **env},
            cwd=self.spec["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=fds,
            preexec_fn=die_with(os.getpid()),
        )
        assert process.stdout and process.stderr
        self.pid = process.pid
        process.returncode = 0  # hostd waits for it itself; Popen must not
        for pipe, letter in ((process.stdout, "o"), (process.stderr, "e")):
            self.streams.append(Stream(os.dup(pipe.fileno()), letter, self._log, self._last))
            pipe.close()

    def signal(self, number: int) -> None:
        """Send a signal to the rank and to all it started in its own process group."""
        self.signalled = True
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError) as error:
            note(f"rank {self.spec['rank']}: {error}")

    @property
    def bad(self) -> bool:
        """Whether the rank ended, and not with status 0."""
        return self.exit is not None and self.exit["code"] != 0

    def end(self, code: Optional[int], number: Optional[int], told: str = "") -> None:
        """Fill the exit record and write it. ``told`` is the cause where hostd knows it better than the rank."""
        for stream in self.streams:
            stream.drain()
        error = own_words(self.spec["error"])
        self.exit = {key: self.spec[key] for key in ("rank", "stage", "host", "device")}
        self.exit.update(pid=self.pid, code=code, signal=number, started=self.started, ended=now())
        self.exit["ended_by_us"] = self.signalled
        self.exit["cause"] = told or self._cause(code, number, error.get("message", ""))
        self.exit["consequence"] = error.get("consequence") is True and self.bad
        self.exit["step"] = error["step"] if isinstance(error.get("step"), int) else None
        self.exit["last_lines"] = [line.decode(errors="replace") for _, line in self._last]
        try:
            write_atomic(self.spec["exit"], json.dumps(self.exit, indent=1) + "\n")
        except OSError as failure:
            note(f"cannot write {self.spec['exit']}: {failure}")

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


class Hostd:
    """The supervisor: one loop over the ranks' pipes, their exits, and the files that speak to it."""

    def __init__(self, launch: Dict[str, Any], lock: int) -> None:
        self.launch, self.lock = launch, lock
        self.events = Appender(launch["events"])
        self.ranks = [Rank(spec) for spec in launch["ranks"]]
        self.selector = selectors.DefaultSelector()
        self.running = self.terminated = False
        self.verdict, self.why = "", ""
        self.ladder: List[Tuple[float, Callable[[], None]]] = []

    def run(self, on_start: Callable[[], None]) -> None:
        """Run the attempt to its end. ``on_start`` is called after the first event."""
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of ranks become hostd's, to be reaped and found
        self._listen_to_signals()
        self._event("state", state="starting", hostd=os.getpid())
        on_start()
        self._start_ranks()
        while self._alive():
            self._turn()
        self._sweep()
        self._finish()

    def _listen_to_signals(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        heard, wake = socket.socketpair()
        for end in (heard, wake):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._wake = wake  # kept open
        self.selector.register(heard, selectors.EVENT_READ, lambda: heard.recv(4096))
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "terminated", True))
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # not SIG_IGN, which ranks would inherit

    def _start_ranks(self) -> None:
        store = socket.create_server(("127.0.0.1", 0), backlog=128)
        common = {"VPIPE_RUN": self.launch["run"], "VPIPE_NONCE": os.urandom(16).hex()}
        common["VPIPE_STORE"] = "127.0.0.1:%d" % store.getsockname()[1]
        for rank in self.ranks:
            first = rank.spec["rank"] == 0
            env = {**common, "VPIPE_STORE_FD": str(store.fileno())} if first else common
            try:
                rank.start(env, [self.lock, store.fileno()] if first else [self.lock])
            except (OSError, ValueError) as error:
                self._ended(rank, None, None, f"cannot start {rank.spec['argv'][0]}: {error}")
                continue
            self._event("rank-start", rank=rank.spec["rank"], pid=rank.pid)
            for stream in rank.streams:
                self.selector.register(stream.fd, selectors.EVENT_READ, lambda stream=stream: self._pump(stream))
        store.close()  # from here on only rank 0 listens, so its end refuses the others instead of leaving them waiting

    def _alive(self) -> List[Rank]:
        return [rank for rank in self.ranks if rank.exit is None]

    def _turn(self) -> None:
        for key, _ in self.selector.select(TICK):
            key.data()
        self._reap()
        self._look_for_ready()
        self._look_for_stop()
        while self.ladder and time.monotonic() >= self.ladder[0][0]:
            self.ladder.pop(0)[1]()

    def _pump(self, stream: Stream) -> None:
        if stream.pump() == 0:
            self.selector.unregister(stream.fd)
            stream.close()

    def _look_for_ready(self) -> None:
        if not self.running and not self.verdict and all(os.path.exists(rank.spec["ready"]) for rank in self.ranks):
            self.running = True
            self._event("state", state="running")

    def _look_for_stop(self) -> None:
        asked = os.path.exists(self.launch["stop"])
        if (asked or self.terminated) and not self.verdict and self._alive():
            self._end_all("stopped", "because a stop was asked for" if asked else "because hostd got SIGTERM", 0.0)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for rank in self._alive():
                if rank.pid == pid:
                    self._look_for_ready()
                    ended = os.WIFSIGNALED(status)
                    self._ended(rank, None if ended else os.WEXITSTATUS(status), os.WTERMSIG(status) if ended else None)

    def _ended(self, rank: Rank, code: Optional[int], number: Optional[int], told: str = "") -> None:
        if rank.signalled and not told:
            told = f"ended by vpipe {self.why}"
        rank.end(code, number, told)
        assert rank.exit
        self._event("rank-exit", rank=rank.spec["rank"], code=code, signal=number, cause=rank.exit["cause"])
        if rank.bad and not self.verdict:
            self._end_all("failed", "because another rank had failed", WINDOW)

    def _end_all(self, verdict: str, why: str, window: float) -> None:
        """Decide how the attempt ends, and set the times at which what is left is asked, forced, and given up."""
        self.verdict, self.why = verdict, why
        ask = time.monotonic() + window
        force = ask + self.launch["grace"]
        self.ladder = [(ask, self._ask), (force, self._force), (force + SWEEP, self._give_up)]

    def _ask(self) -> None:
        self._reap()  # who has ended already was not ended by us
        for rank in self._alive():
            rank.signal(signal.SIGTERM)
            rank.signal(signal.SIGCONT)  # a stopped process hears nothing else

    def _force(self) -> None:
        for rank in self._alive():
            rank.signal(signal.SIGKILL)

    def _give_up(self) -> None:
        self._reap()
        for rank in self._alive():
            self._ended(rank, None, None, f"process {rank.pid} is still there {SWEEP:g} s after SIGKILL")

    def _sweep(self) -> None:
        """Kill what ranks have left behind, and take in its last output."""
        deadline = time.monotonic() + SWEEP
        strays = find_strays(self.launch["run"])
        while strays and time.monotonic() < deadline:
            for pid in strays:
                note(f"killing process {pid}, left behind by a rank")
                try:
                    os.kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError) as error:
                    note(f"process {pid}: {error}")
            for key, _ in self.selector.select(0.05):
                key.data()
            self._reap()
            strays = find_strays(self.launch["run"])
        for rank in self.ranks:
            for stream in rank.streams:
                stream.drain()

    def _finish(self) -> None:
        """Write the final state; for a failed run with who failed first by itself, or else who ended badly first."""
        if self.verdict != "failed":
            self._event("state", state=self.verdict or "succeeded", why=self.why)
            return
        exits = sorted((rank.exit for rank in self.ranks if rank.exit and rank.bad), key=lambda record: record["ended"])
        own = [record for record in exits if not record["ended_by_us"] and not record["consequence"]]
        first = (own or exits)[0]
        failure = {key: first[key] for key in ("rank", "stage", "host", "cause", "step")}
        self._event("state", state="failed", first_failure=failure)

    def _event(self, event: str, **fields: Any) -> None:
        record = {"time": now(), "event": event, "attempt": self.launch["attempt"], **fields}
        self.events.write(seal(record).encode(), durable=True)


def note(text: str) -> None:
    """One line to hostd.log; where even that cannot be written, none."""
    try:
        os.write(2, f"{stamp()} {text}\n".encode())
    except OSError:
        pass


def now() -> float:
    """Unix time that never goes back, even when the clock is set: logs and events stay in order."""
    return BOOT + time.clock_gettime(time.CLOCK_BOOTTIME)


def stamp() -> str:
    """The time in UTC with microseconds, as every line of a log begins: ``2026-11-23T12:49:00.123456Z``."""
    return datetime.fromtimestamp(now(), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def seal(record: Dict[str, Any]) -> str:
    """One line of events.jsonl, exactly as worker.spec.files.seal makes it."""
    body = json.dumps(record, separators=(",", ":"))
    return f'{body[:-1]},"crc":"{zlib.crc32(body.encode()):08x}"}}\n'


def write_atomic(path: str, text: str) -> None:
    """Write aside, fsync, rename: no reader sees half of it."""
    folder, name = os.path.split(path)
    aside = os.path.join(folder, f".{name}.{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def own_words(path: str) -> Dict[str, Any]:
    """What a rank wrote of its own failure; empty where it wrote nothing, or only half."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            words = json.load(file)
    except (OSError, ValueError):
        return {}
    return words if isinstance(words, dict) and isinstance(words.get("message"), str) else {}


def die_with(parent: int) -> Callable[[], None]:
    """For a child to call between fork and exec: it is killed when ``parent`` ends, however that ends."""

    def tie() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def find_strays(run: str) -> List[int]:
    """Processes that carry the run's token, and orphans of its ranks whatever they carry."""
    token = f"VPIPE_RUN={run}".encode()
    me = os.getpid()
    strays = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
            with open(f"/proc/{pid}/environ", "rb") as file:
                carries = token in file.read().split(b"\0")
        except OSError:  # gone, or not ours to read
            continue
        if pid != me and state not in b"ZX" and (carries or int(parent) == me):
            strays.append(pid)
    return strays


def take_lock(path: str) -> int:
    """Lock the run for this process and the ranks that inherit the descriptor. Raises Refused while another has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(10):  # whoever only asks whether the run is alive has the lock for a moment
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            time.sleep(0.1)
    raise Refused("the run is already running: a process of it still holds its lock")


def read_launch(path: str) -> Dict[str, Any]:
    """The launch to carry out. Raises Refused if the file is missing or is none."""
    try:
        with open(path, encoding="utf-8") as file:
            launch = json.load(file)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot be read ({error})") from None
    needed = {"run", "attempt", "attempt_folder", "grace", "lock", "stop", "events", "hostd_log", "ranks"}
    if not isinstance(launch, dict) or not needed <= set(launch):
        raise Refused(f"is no launch: it needs the keys {', '.join(sorted(needed))}")
    return launch


def claim(launch: Dict[str, Any]) -> int:
    """Lock the run and make the attempt's folder, which only the first to start the attempt can. Raises Refused."""
    lock = take_lock(launch["lock"])
    if os.path.exists(launch["stop"]):
        raise Refused("a stop was asked for before the run began")
    try:
        os.mkdir(launch["attempt_folder"], 0o700)
    except FileExistsError:
        raise Refused(f"attempt {launch['attempt']} of the run was started before") from None
    return lock


def detach(log: str) -> None:
    """Leave the session and the terminal: standard input is empty, all output goes to ``log``."""
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)


def main(argv: Sequence[str]) -> int:
    """Start the supervisor of the launch named on the command line, and wait for its first event."""
    if len(argv) != 2:
        print("usage: python hostd.py LAUNCH_JSON", file=sys.stderr)
        return 2
    os.umask(0o077)
    try:
        launch = read_launch(argv[1])
        lock = claim(launch)
    except (OSError, Refused) as error:
        print(f"hostd: {argv[1]}: {error}", file=sys.stderr)
        return 1
    heard, tell = os.pipe()
    if os.fork():
        os.close(tell)
        if os.read(heard, 1):
            return 0
        print(f"hostd: ended before it began, see {launch['hostd_log']}", file=sys.stderr)
        return 1
    os.close(heard)
    detach(launch["hostd_log"])
    Hostd(launch, lock).run(lambda: os.close(tell) if os.write(tell, b"1") else None)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
