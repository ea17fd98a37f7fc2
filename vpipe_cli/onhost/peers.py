"""One file from one machine to another, over their own network. Python 3.8, standard library only."""

from __future__ import annotations

import fcntl
import hmac
import os
import select
import socket
import struct
import time
from typing import Any, BinaryIO, Callable, Dict, List

from vpipe_cli.onhost.program import Refused, say

PATIENCE = 30.0  # seconds without a byte, after which another machine is given up
SIOCGIFADDR = 0x8915


class Growing:
    """An open file of ``size`` bytes, of which the last may still be on their way, as long as ``is_arriving``."""

    def __init__(self, file: BinaryIO, size: int, is_arriving: Callable[[], bool]) -> None:
        self.file, self.size = file, size
        self._is_arriving = is_arriving

    def there(self, at: int) -> int:
        """Bytes that are there from ``at`` on, once there are some; 0 if no more come."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            more = self._is_arriving()  # asked first: what came before the last word counts
            found = min(self.size, os.fstat(self.file.fileno()).st_size) - at
            if found > 0:
                return found
            if not more:
                break
            time.sleep(0.02)
        return 0


def hand_over(growing: Growing, token: str, peers: List[str]) -> bool:
    """Give the file to the one that knows ``token``, over addresses from which ``peers`` can be reached.

    False if the client went away before. Raises Refused if nobody came.
    """
    servers = [server for address in routes(peers) for server in listeners(address)]
    if not servers:
        raise Refused("no address from which the others can be reached")
    say({"endpoints": [list(server.getsockname()[:2]) for server in servers]})
    deadline = time.monotonic() + PATIENCE
    waited: List[Any] = [0, *servers]
    while time.monotonic() < deadline:
        ready = select.select(waited, [], [], max(0.0, deadline - time.monotonic()))[0]
        if 0 in ready:
            return False  # nobody writes: the client has gone
        for server in (each for each in servers if each in ready):
            if give(server.accept()[0], growing, token):
                return True
    raise Refused("nobody came for it")


def give(connection: socket.socket, growing: Growing, token: str) -> bool:
    """Send the file from where the other side has it, as it comes. False for one that does not know the token."""
    with connection:
        connection.settimeout(PATIENCE)
        try:
            known, _, offset = read_line(lambda: connection.recv(1)).partition(" ")
            if not hmac.compare_digest(known.encode(), token.encode()):
                return False
            at = int(offset)
            while at < growing.size and (count := growing.there(at)):
                at += connection.sendfile(growing.file, at, count)
        except (OSError, ValueError):
            return False
    return True


def reach(endpoints: List[List[Any]]) -> socket.socket:
    """A connection to the first endpoint that answers. Raises Refused if none does."""
    problems = []
    for address, port in endpoints:
        try:
            connection = socket.create_connection((address, port), 3.0)
            connection.settimeout(PATIENCE)
            return connection
        except OSError as error:
            problems.append("%s: %s" % (address, error))
    raise Refused("cannot reach the machine that has it: " + "; ".join(problems))


def listeners(address: str) -> List[socket.socket]:
    """A socket that listens there, if that can be."""
    try:
        return [socket.create_server((address, 0))]
    except OSError:
        return []


def routes(peers: List[str]) -> List[str]:
    """This machine's addresses towards the peers; those it does not share with a peer come first."""
    found: Dict[str, bool] = {}
    for peer in peers:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((peer, 9))  # sends nothing; the kernel chooses the route
            except OSError:
                continue
            mine = probe.getsockname()[0]
            found[mine] = found.get(mine, True) and mine == peer
    return sorted(found, key=lambda address: found[address])


def addresses() -> List[str]:
    """This machine's addresses, loopback left out."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                raw = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address
                continue
            found.append(socket.inet_ntoa(raw[20:24]))
    return [address for address in found if not address.startswith("127.")]


def read_line(read: Callable[[], bytes], most: int = 200) -> str:
    """A line, byte by byte, so that nothing behind it is taken; empty where the other side has gone."""
    line = b""
    while len(line) < most:
        byte = read()
        if byte == b"\n":
            return line.decode()
        if not byte:
            break
        line += byte
    return ""
