"""Messages between the head and a member: lines of JSON over TCP, each signed.

Both sides know the run's secret; it never crosses the wire. Each side sends a random challenge, the session's key is
the secret's HMAC of both, and every message carries the HMAC of its sender, its number and its text. So nobody without
the secret can join, and no message can be altered, repeated, reordered or sent back to its sender. Nothing is
encrypted: what travels is pids, causes and step numbers.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

BEAT = 1.0  # seconds between two signs of life
LEASE = 6.0  # seconds of silence after which the other side counts as gone
LINE_LIMIT = 1 << 20
GREETING_LIMIT = 4096
GREETING_SECONDS = 5.0
MAX_GUESTS = 64

Message = Dict[str, Any]


class LinkLost(Exception):
    """The other side is gone, or is not who it must be; the message says which."""


class Link:
    """An authenticated connection. Never waits: what cannot be sent now goes with a later ``flush``."""

    def __init__(self, sock: socket.socket, session: bytes, mine: bytes, theirs: bytes, rest: bytes = b"") -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self.heard = time.monotonic()
        self._session, self._mine, self._theirs = session, mine, theirs
        self._sent = self._received = 0
        self._in, self._out = rest, b""
        self._spoke = 0.0

    def send(self, message: Message) -> None:
        """Sign and send a message. Raises LinkLost."""
        body = json.dumps(message, separators=(",", ":")).encode()
        self._out += self._sign(self._mine, self._sent, body) + b" " + body + b"\n"
        self._sent += 1
        self._spoke = time.monotonic()
        self.flush()

    def flush(self) -> None:
        """Send what is left, and a sign of life when it is time for one. Raises LinkLost."""
        if time.monotonic() - self._spoke > BEAT:
            self.send({})
        try:
            while self._out:
                self._out = self._out[self.socket.send(self._out) :]
        except BlockingIOError:
            pass
        except OSError as error:
            raise LinkLost(f"the connection broke ({error.strerror})") from None

    def receive(self, one: bool = False) -> List[Message]:
        """What has arrived (the first of it), without signs of life. Raises LinkLost, also after a long silence."""
        closed = self._read()
        messages: List[Message] = []
        while b"\n" in self._in and not (one and messages):
            line, _, self._in = self._in.partition(b"\n")
            messages += filter(None, [self._open(line)])
        if len(self._in) > LINE_LIMIT:
            raise LinkLost("it sent an endless line")
        if not messages:
            self._check(closed)
        return messages

    def _check(self, closed: str) -> None:
        if closed:
            raise LinkLost(closed)
        silence = time.monotonic() - self.heard
        if silence > LEASE:
            raise LinkLost(f"no word from it for {silence:.0f} s")

    def _read(self) -> str:
        """Take in what is there. Returns why no more will come, if so."""
        while True:
            try:
                data = self.socket.recv(65536)
            except BlockingIOError:
                return ""
            except OSError as error:
                return f"the connection broke ({error.strerror})"
            if not data:
                return "it closed the connection"
            self._in += data
            self.heard = time.monotonic()

    def _open(self, line: bytes) -> Message:
        signature, _, body = line.partition(b" ")
        if not hmac.compare_digest(signature, self._sign(self._theirs, self._received, body)):
            raise LinkLost("it sent a message with a wrong signature")
        self._received += 1
        message = json.loads(body)
        return message if isinstance(message, dict) else {}

    def _sign(self, sender: bytes, number: int, body: bytes) -> bytes:
        return hmac.new(self._session, b"%s %d " % (sender, number) + body, hashlib.sha256).hexdigest().encode()

    def close(self) -> None:
        """End the connection."""
        self.socket.close()


def nonce_of(secret: str, attempt: int) -> str:
    """What the ranks of one attempt share and no other attempt's have; every hostd works it out for itself."""
    return hmac.new(secret.encode(), b"attempt %d" % attempt, hashlib.sha256).hexdigest()[:32]


def _session(secret: str, door: bytes, guest: bytes) -> bytes:
    return hmac.new(secret.encode(), b"session " + door + b" " + guest, hashlib.sha256).digest()


def call(address: str, secret: str, hello: Message, timeout: float) -> Link:
    """Connect to the head at ``host:port`` and be welcomed. Raises LinkLost."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    try:
        sock = socket.create_connection((host, int(port)), timeout)
        sock.settimeout(timeout)
        challenge, rest = _greeting(sock)
        mine = os.urandom(16).hex().encode()
        sock.sendall(mine + b"\n")
    except (OSError, ValueError) as error:
        raise LinkLost(f"no hostd answers at {address} ({error})") from None
    link = Link(sock, _session(secret, challenge, mine), b"member", b"head", rest)
    try:
        return _welcomed(link, hello, deadline)
    except LinkLost as error:
        link.close()
        raise LinkLost(f"the hostd at {address} did not welcome this one: {error}") from None


def _welcomed(link: Link, hello: Message, deadline: float) -> Link:
    link.send(hello)
    while time.monotonic() < deadline:
        for message in link.receive(one=True):
            if "welcome" in message:
                return link
            raise LinkLost(str(message.get("refused", "it speaks another language")))
        time.sleep(0.01)
    raise LinkLost("no answer")


def _greeting(sock: socket.socket) -> Tuple[bytes, bytes]:
    data = b""
    while b"\n" not in data and len(data) < GREETING_LIMIT:
        more = sock.recv(1024)
        if not more:
            raise OSError("it closed the connection at once")
        data += more
    line, _, rest = data.partition(b"\n")
    return line, rest


class Guest:
    """A connection that has not shown yet who it is."""

    def __init__(self, sock: socket.socket, secret: str) -> None:
        sock.setblocking(False)
        self.socket, self._secret = sock, secret
        self._challenge = os.urandom(16).hex().encode()
        self._data = b""
        self._link: Optional[Link] = None
        self.until = time.monotonic() + GREETING_SECONDS
        sock.send(self._challenge + b"\n")

    def look(self) -> Optional[Tuple[Link, Message]]:
        """The link and its first message, once it has proved itself. Raises LinkLost."""
        if self._link is None and not self._begin():
            return None
        assert self._link
        messages = self._link.receive(one=True)
        return (self._link, messages[0]) if messages else None

    def _begin(self) -> bool:
        try:
            data = self.socket.recv(GREETING_LIMIT)
        except BlockingIOError:
            data = b""
        except OSError as error:
            raise LinkLost(str(error)) from None
        else:
            if not data:
                raise LinkLost("it closed the connection")
        self._data += data
        line, newline, rest = self._data.partition(b"\n")
        if len(self._data) > GREETING_LIMIT or (not newline and time.monotonic() > self.until):
            raise LinkLost("it did not say who it is")
        if newline:
            self._link = Link(self.socket, _session(self._secret, self._challenge, line), b"head", b"member", rest)
        return bool(newline)


class Door:
    """The head's listener, on one address. ``welcome`` gets each link that has proved itself, and its first message."""

    def __init__(self, address: str, secret: str, welcome: Callable[[Link, Message], None]) -> None:
        self.socket = socket.create_server((address, 0), backlog=MAX_GUESTS)
        self.socket.setblocking(False)
        self._secret, self._welcome = secret, welcome
        self._guests: List[Guest] = []

    @property
    def address(self) -> str:
        """``host:port``, where members call."""
        return "%s:%d" % self.socket.getsockname()[:2]

    def look(self) -> None:
        """Let in who has come, and turn away who cannot show the secret."""
        self._accept()
        for guest in list(self._guests):
            try:
                found = guest.look()
                if found is None and time.monotonic() > guest.until:
                    raise LinkLost("it did not say who it is")
            except (LinkLost, ValueError):
                self._guests.remove(guest)
                guest.socket.close()
                continue
            if found:
                self._guests.remove(guest)
                self._welcome(*found)

    def _accept(self) -> None:
        while len(self._guests) < MAX_GUESTS:
            try:
                sock, _ = self.socket.accept()
                self._guests.append(Guest(sock, self._secret))
            except OSError:  # nobody there, or gone again
                return
