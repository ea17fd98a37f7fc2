"""One file from one machine to another, over their own network. Python 3.8, standard library only."""

from __future__ import annotations

import fcntl
import hmac
import select
import socket
import struct
import time
from typing import Any, Callable, Dict, List

from vpipe_cli.onhost.program import Refused, say

PATIENCE = 30.0  # seconds without a byte, after which another machine is given up
SIOCGIFADDR = 0x8915


def hand_over(path: str, token: str, peers: List[str]) -> bool:
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
            if give(server.accept()[0], path, token):
                return True
    raise Refused("nobody came for it")


def give(connection: socket.socket, path: str, token: str) -> bool:
    """Send the file from where the other side has it. False for one that does not know the token."""
    with connection:
        connection.settimeout(PATIENCE)
        try:
            known, _, offset = read_line(lambda: connection.recv(1)).partition(" ")
            if not hmac.compare_digest(known.encode(), token.encode()):
                return False
            with open(path, "rb") as file:
                file.seek(int(offset))
                connection.sendfile(file, int(offset))
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


def read_line(read: Callable[[], bytes]) -> str:
    """A short line, byte by byte, so that nothing behind it is taken. Raises Refused if there is none."""
    line = b""
    while len(line) < 200:
        byte = read()
        if byte == b"\n":
            return line.decode()
        if not byte:
            break
        line += byte
    raise Refused("the other side has gone")
