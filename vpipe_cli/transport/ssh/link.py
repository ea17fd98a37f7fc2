"""One connection to an SSH server: made, watched, shared, made again."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable

import paramiko

from vpipe_cli.transport.hostkeys import HostKey, recorded, verify
from vpipe_cli.transport.proxy import Proxy
from vpipe_cli.transport.ssh import alive
from vpipe_cli.transport.ssh.alive import BROKEN
from vpipe_cli.transport.ssh.login import log_in
from vpipe_cli.transport.target import Target
from worker.errors import UnreachableError

HANDSHAKES = 8  # in flight per server: sshd drops some of more than 10 (MaxStartups)
SESSIONS = 8  # commands at once per connection: sshd refuses the 11th (MaxSessions)
STILL_COUNTED = 10.0  # seconds sshd may count sessions that have ended here, and refuse new ones
CONNECT_FAILED = 2  # how it refuses them
TYPES = {"rsa-sha2-256": "ssh-rsa", "rsa-sha2-512": "ssh-rsa"}  # the type of keys that have several algorithms

Verify = Callable[[Target, HostKey], None]

_gates: defaultdict[tuple[str, int], threading.Semaphore] = defaultdict(lambda: threading.Semaphore(HANDSHAKES))


class Link:
    """One connection to an SSH server. Safe to use from several threads."""

    def __init__(self, target: Target, via: Link | None = None, check: Verify = verify) -> None:
        self.target, self._via, self._check = target, via, check
        self._lock = threading.Lock()
        self._transport: paramiko.Transport | None = None
        self._failure: tuple[float, UnreachableError] | None = None
        self._slots = threading.Semaphore(SESSIONS)

    def transport(self) -> paramiko.Transport:
        """The connection, made if there is none. Raises UnreachableError, after ``connect_timeout`` at the latest."""
        asked = time.monotonic()
        with self._lock:
            if self._failure and self._failure[0] > asked:
                raise self._failure[1]  # of those that ask at the same time, one tries for all
            if self._transport is None or not self._transport.is_active():
                try:
                    self._transport = self._dial(time.monotonic() + self.target.connect_timeout)
                except UnreachableError as error:
                    self._failure = time.monotonic(), error
                    raise
            return self._transport

    def start(self, command: str, timeout: float) -> paramiko.Channel:
        """A channel on which the server runs ``command``; whoever gets it must ``end`` it."""
        if not self._slots.acquire(timeout=timeout):
            raise TimeoutError(f"{self.target.host}: {SESSIONS} other commands did not end within {timeout:g} s")
        try:
            channel = self._open(timeout)
            channel.exec_command(command)
        except BaseException as error:
            self._slots.release()
            raise self.lost(error) if isinstance(error, BROKEN) else error from None
        return channel

    def end(self, channel: paramiko.Channel) -> None:
        """Close a channel that ``start`` opened, once."""
        with contextlib.suppress(*BROKEN):
            channel.close()
        self._slots.release()

    def lost(self, error: object = "") -> UnreachableError:
        """The error of a connection that broke."""
        reason = f": {error}" if str(error) else ""
        return UnreachableError(f"the connection to {self.target} broke{reason}", "what ran there may run on")

    def close(self) -> None:
        """End the connection. Idempotent."""
        if self._transport:
            self._transport.close()

    def _open(self, timeout: float) -> paramiko.Channel:
        """A new session; over a new connection if the old one broke unnoticed, since nothing ran yet."""
        patience = time.monotonic() + min(timeout, STILL_COUNTED)
        while True:
            first = self.transport()
            try:
                return first.open_session(timeout=timeout)
            except paramiko.ChannelException as error:
                if error.code != CONNECT_FAILED or time.monotonic() > patience:
                    raise
                time.sleep(0.05)
            except BROKEN:
                if first.is_active():
                    raise
                return self.transport().open_session(timeout=timeout)

    def _dial(self, deadline: float) -> paramiko.Transport:
        """Connect, tried again while the server is too busy to say hello."""
        via = self._via.transport() if self._via else None
        gate = _gates[self.target.door]
        for attempt in range(1000):
            if not gate.acquire(timeout=max(0.0, deadline - time.monotonic())):
                break
            try:
                return self._handshake(via, deadline)
            except _Busy:
                pause = random.uniform(0.05, 0.2) * 2 ** min(attempt, 4)
            finally:
                gate.release()
            if time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
        raise self._unreachable(f"is too busy to answer within {self.target.connect_timeout:g} s")

    def _handshake(self, via: paramiko.Transport | None, deadline: float) -> paramiko.Transport:
        transport = paramiko.Transport(self._socket(via, deadline))
        try:
            self._agree(transport, deadline)
            log_in(transport, self.target, deadline)
        except BaseException:
            transport.close()
            raise
        threading.Thread(target=alive.watch, args=[transport], daemon=True).start()
        return transport

    def _socket(self, via: paramiko.Transport | None, deadline: float) -> socket.socket | paramiko.Channel:
        """A stream of bytes to the server."""
        target, left = self.target, max(0.1, deadline - time.monotonic())
        if target.command:
            return Proxy(target.command)
        try:
            if via:
                return via.open_channel("direct-tcpip", (target.address, target.port), ("127.0.0.1", 0), timeout=left)
            plain = socket.create_connection((target.address, target.port), left)
        except BROKEN as error:
            raise self._unreachable(*self._reason(error)) from None
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: give up sending when nothing is acknowledged
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * (alive.BEAT + alive.SILENCE)))
        return plain

    def _agree(self, transport: paramiko.Transport, deadline: float) -> None:
        """Ciphers and the host's key, verified before anything of the user's is sent."""
        target = self.target
        options = transport.get_security_options()
        options.ciphers = sorted(options.ciphers, key=lambda name: name != "aes128-gcm@openssh.com")  # fastest first
        known = {line.key.type for line in recorded(target.known_as, target.known_hosts)}
        options.key_types = sorted(options.key_types, key=lambda name: TYPES.get(name, name) not in known)
        left = max(0.1, deadline - time.monotonic())
        transport.banner_timeout = transport.handshake_timeout = left
        try:
            transport.start_client(timeout=left)
            key = transport.get_remote_server_key()
        except BROKEN as error:
            late = time.monotonic() >= deadline - 0.1
            if isinstance(error, (EOFError, ConnectionError)) or ("banner" in str(error) and not late):
                raise _Busy from None
            silent = f"is silent for {target.connect_timeout:g} s after connecting"
            raise self._unreachable(silent if late else f"does not speak SSH as expected: {error}") from None
        self._check(target, HostKey(key.get_name(), key.asbytes()))

    def _reason(self, error: Exception) -> tuple[str, str]:
        """Why there is no stream of bytes to the server, and the remedy where there is one."""
        via, seconds = self.target.via, self.target.connect_timeout
        match error:
            case ConnectionRefusedError():
                return "refuses: no SSH server listens there", "ssh: {port: N} names another port"
            case socket.gaierror():
                return "has a name that nobody knows", "machines takes what ssh takes: a name or alias of ~/.ssh/config"
            case TimeoutError():
                return f"does not answer within {seconds:g} s", ""
            case paramiko.ChannelException() if via:
                reason = "forbids to go on" if error.code == 1 else "cannot reach it"
                return f"is out of reach: {via.host} {reason} ({error.text})", ""
        return f"cannot be reached: {getattr(error, 'strerror', None) or error}", ""

    def _unreachable(self, what: str, hint: str = "") -> UnreachableError:
        return UnreachableError(f"{self.target} {what}", hint or f"try: ssh {self.target.host}")


class _Busy(Exception):
    """The server hung up before it said hello: too many are connecting."""
