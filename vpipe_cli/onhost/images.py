"""The images of one machine: what is there, taking in what is not, giving it to other machines.

``<root>/images/<sha256>.sif`` is an image that arrived whole; ``.<sha256>.<host>.part`` is the beginning of one;
``<sha256>.json`` says how the file was when its digest was last taken, so that gigabytes are read again only if it
changed. Requests and answers are JSON, one line each; a failure is a last line ``{"error": text}``. Python 3.8,
standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import json
import os
import re
import select
import socket
import struct
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

CHUNK = 1 << 20
SPARE = 64 << 20  # bytes of the disk that are left free
PATIENCE = 30.0  # seconds without a byte, after which another machine is given up
SIOCGIFADDR = 0x8915
DIGEST = re.compile(r"[0-9a-f]{64}")
Answer = Dict[str, Any]
Source = Callable[[int, str], Tuple[int, Iterator[bytes]]]
"""Given the bytes that are here and their sha256: where it goes on from, and the bytes from there."""


class Refused(Exception):
    """It cannot be done here; the message says why."""


def main(request: Dict[str, Any]) -> None:
    """Do ``request["do"]``: look, receive, fetch, serve."""
    os.umask(0o077)
    try:
        root = vpipe_root(request.get("root"))
        say(ACTIONS[request["do"]](root, request))
    except Refused as error:
        say({"error": str(error)})
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        say({"error": reason, "full": error.errno in (errno.ENOSPC, errno.EDQUOT)})
    except (KeyError, TypeError, ValueError) as error:
        say({"error": "%s: %s" % (type(error).__name__, error)})


def say(answer: Answer) -> None:
    """One line to whoever asked."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def vpipe_root(given: Optional[str]) -> str:
    """Where vpipe keeps everything on this machine."""
    return os.path.abspath(os.path.expanduser(given or os.environ.get("VPIPE_HOME") or "~/.vpipe"))


class Image:
    """One image of this machine, there or not."""

    def __init__(self, root: str, request: Dict[str, Any]) -> None:
        self.sha, self.size = checked(request["sha256"]), int(request.get("size", 0))
        self.folder = os.path.join(root, "images")
        self.path = os.path.join(self.folder, self.sha + ".sif")
        self.stamp = os.path.join(self.folder, self.sha + ".json")
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
        self.part = os.path.join(self.folder, ".%s.%s.part" % (self.sha, host))

    def whole(self, again: bool = False) -> bool:
        """Whether it is here. Its digest is taken again if the file changed. Raises Refused if it is damaged."""
        try:
            now = as_it_is(self.path)
        except FileNotFoundError:
            return False
        known = read_json(self.stamp)
        if again or known.get("as_it_is") != now:
            found = digest_of(self.path)
            if found != self.sha:
                raise Refused("%s is damaged: its sha256 is %s" % (self.path, found))
        write_json(self.stamp, {"as_it_is": now, "used": time.time()})
        return True

    def begun(self) -> int:
        """Bytes of it that arrived before, where the rest did not."""
        try:
            return min(os.path.getsize(self.part), self.size)
        except OSError:
            return 0

    def lock(self) -> int:
        """Wait until nobody else brings this image here, saying so each second."""
        os.makedirs(self.folder, 0o700, exist_ok=True)
        descriptor = os.open(os.path.join(self.folder, ".%s.lock" % self.sha), os.O_RDWR | os.O_CREAT, 0o600)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                say({"waiting": self.begun()})
                if select.select([0], [], [], 1.0)[0]:  # the client never speaks here: it has gone
                    sys.exit(0)
            except OSError:  # a file system without locks: parts have names of their own, and a rename is whole
                return descriptor


def look(root: str, request: Dict[str, Any]) -> Answer:
    """Whether the image is here, how much of it if not, how much room there is, and this machine's addresses."""
    image = Image(root, request)
    if request.get("repair"):
        discard(image)
    answer = {"root": root, "path": image.path, "addresses": addresses(), "free": free(image.folder)}
    try:
        return dict(answer, here=image.whole(), begun=image.begun())
    except Refused as error:
        return dict(answer, here=False, begun=0, damaged=str(error))


def discard(image: Image) -> None:
    """Remove an image that is not what its name says."""
    try:
        image.whole(again=True)
    except Refused:
        os.unlink(image.path)


def receive(root: str, request: Dict[str, Any]) -> Answer:
    """Take the image in from standard input. Asks with ``have`` and ``prefix``; the answer tells where it goes on."""

    def source(have: int, prefix: str) -> Tuple[int, Iterator[bytes]]:
        say({"have": have, "prefix": prefix})
        offset = int(json.loads(read_line(lambda: os.read(0, 1)))["from"])
        return offset, pieces(lambda count: os.read(0, count), request["size"] - offset)

    return take_in(Image(root, request), source)


def fetch(root: str, request: Dict[str, Any]) -> Answer:
    """Take the image in from another machine that serves it, at the first of ``endpoints`` that answers."""

    def source(have: int, prefix: str) -> Tuple[int, Iterator[bytes]]:
        connection = reach(request["endpoints"])
        connection.sendall(("%s %d\n" % (request["token"], have)).encode())
        return have, pieces(connection.recv, request["size"] - have)

    return take_in(Image(root, request), source, report=True)


def take_in(image: Image, source: Source, report: bool = False) -> Answer:
    """Write what ``source`` gives after what is here already; into place only if it is the image, and then at once."""
    lock = image.lock()
    try:
        if image.whole():
            return {"done": image.path, "here": True}
        descriptor = os.open(image.part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            arrive(image, descriptor, source, report)
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(image.part, image.path)
        sync_folder(image.folder)
        write_json(image.stamp, {"as_it_is": as_it_is(image.path), "used": time.time()})
        return {"done": image.path}
    finally:
        os.close(lock)


def arrive(image: Image, descriptor: int, source: Source, report: bool) -> None:
    """Complete the part. Raises Refused if the bytes end early or are not those of the image."""
    have = image.begun()
    room = free(image.folder) - SPARE
    if image.size - have > room:
        raise Refused("the disk of %s has room for %d MB of %d" % (image.folder, max(0, room) >> 20, image.size >> 20))
    taken = hashlib.sha256()
    for piece in file_pieces(image.part, have):
        taken.update(piece)
    at, stream = source(have, taken.hexdigest())
    if at != have:
        at, taken = 0, hashlib.sha256()
    os.ftruncate(descriptor, at)
    os.lseek(descriptor, at, os.SEEK_SET)
    told = time.monotonic()
    for piece in stream:
        write_all(descriptor, piece)
        taken.update(piece)
        at += len(piece)
        if report and time.monotonic() - told > 0.25:
            told = time.monotonic()
            say({"got": at})
    if at < image.size:
        raise Refused("cut off after %d of %d bytes" % (at, image.size))
    if taken.hexdigest() != image.sha:
        os.unlink(image.part)
        raise Refused("what arrived is not the image: its sha256 is %s" % taken.hexdigest())


def serve(root: str, request: Dict[str, Any]) -> Answer:
    """Give the image to the one machine that knows ``token``, over addresses from which ``peers`` can be reached."""
    image = Image(root, request)
    if not image.whole():
        raise Refused("the image is not here")
    servers = [server for address in routes(request["peers"]) for server in listeners(address)]
    if not servers:
        raise Refused("no address from which the others can be reached")
    say({"endpoints": [list(server.getsockname()[:2]) for server in servers]})
    deadline = time.monotonic() + PATIENCE
    waited: List[Any] = [0, *servers]
    while time.monotonic() < deadline:
        ready = select.select(waited, [], [], max(0.0, deadline - time.monotonic()))[0]
        if 0 in ready:
            return {"done": False}  # nobody writes: the client has gone
        for server in (each for each in servers if each in ready):
            if give(server.accept()[0], image, request["token"]):
                return {"done": True}
    raise Refused("nobody came for it")


def give(connection: socket.socket, image: Image, token: str) -> bool:
    """Send the image from where the other side has it. False for one that does not know the token."""
    with connection:
        connection.settimeout(PATIENCE)
        try:
            known, _, offset = read_line(lambda: connection.recv(1)).partition(" ")
            if not hmac.compare_digest(known.encode(), token.encode()):
                return False
            with open(image.path, "rb") as file:
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


def checked(digest: str) -> str:
    """A digest, which becomes part of a path. Raises Refused for anything else."""
    if not DIGEST.fullmatch(digest):
        raise Refused("%r is no sha256" % digest)
    return digest


def as_it_is(path: str) -> List[int]:
    """What changes when a file does."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def digest_of(path: str) -> str:
    """The sha256 of a file."""
    taken = hashlib.sha256()
    for piece in file_pieces(path, os.path.getsize(path)):
        taken.update(piece)
    return taken.hexdigest()


def file_pieces(path: str, count: int) -> Iterator[bytes]:
    """The first ``count`` bytes of a file."""
    with open(path, "rb") as file:
        yield from pieces(file.read, count)


def pieces(read: Callable[[int], bytes], count: int) -> Iterator[bytes]:
    """``count`` bytes, or fewer where they end."""
    while count > 0:
        piece = read(min(CHUNK, count))
        if not piece:
            return
        count -= len(piece)
        yield piece


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


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_json(path: str) -> Dict[str, Any]:
    """An object from a file; empty if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: str, value: Answer) -> None:
    """Write aside, then rename. What cannot be written is only found out again."""
    aside = "%s.%d" % (path, os.getpid())
    try:
        with open(aside, "w", encoding="utf-8") as file:
            json.dump(value, file)
        os.replace(aside, path)
    except OSError:
        pass


def free(folder: str) -> int:
    """Bytes that may be written there; of the nearest folder that exists."""
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def sync_folder(path: str) -> None:
    """Make names durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


ACTIONS = {
    "look": look,
    "receive": receive,
    "fetch": fetch,
    "serve": serve,
}
