"""The images of one machine: what is there, taking in what is not, giving it to other machines.

``<root>/images/<sha256>.sif`` is an image that arrived whole; ``.<sha256>.<host>.part`` is the beginning of one;
``<sha256>.json`` says how the file was when its digest was last taken, so that gigabytes are read again only if it
changed. Python 3.8, standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import select
import socket
import sys
import time
from typing import Any, Callable, Dict, Tuple

from vpipe_cli.onhost.arrival import Arrival, ReadInto, from_input
from vpipe_cli.onhost.files import (
    as_it_is,
    checked,
    digest_of,
    file_pieces,
    free,
    read_json,
    sync_folder,
    write_json,
)
from vpipe_cli.onhost.peers import Growing, addresses, hand_over, reach, read_line
from vpipe_cli.onhost.program import Answer, Refused, act, say

SPARE = 64 << 20  # bytes of the disk that are left free
LONGEST = 64 << 10  # bytes of a request
Source = Callable[[int, str], Tuple[int, ReadInto]]
"""Given the bytes that are here and their sha256: where it goes on from, and what reads from there."""


def main(request: Dict[str, Any]) -> None:
    """Do ``request["do"]``: look, receive, fetch, serve; after a look, what the client asks for then, if anything."""
    act(ACTIONS, request)
    if request["do"] == "look" and (line := read_line(lambda: os.read(0, 1), LONGEST)):
        act(ACTIONS, json.loads(line))


class Image:
    """One image of this machine, there or not."""

    def __init__(self, root: str, request: Dict[str, Any]) -> None:
        self.sha, self.size = checked(request["sha256"]), int(request.get("size", 0))
        self.folder = os.path.join(root, "images")
        self.path = os.path.join(self.folder, self.sha + ".sif")
        self.stamp = os.path.join(self.folder, self.sha + ".json")
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
        self.lock_path = os.path.join(self.folder, ".%s.lock" % self.sha)
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
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT, 0o600)
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

    def is_arriving(self) -> bool:
        """Whether somebody brings this image here at this moment."""
        try:
            descriptor = os.open(self.lock_path, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks: nobody knows
            return False
        finally:
            os.close(descriptor)
        return False

    def growing(self) -> Growing:
        """It, open to be read, whole or still arriving. Raises Refused if it is neither, OSError in between."""
        if self.whole():
            return Growing(open(self.path, "rb"), self.size, lambda: False)
        if not self.is_arriving():
            raise Refused("the image is not here")
        return Growing(open(self.part, "rb"), self.size, self.is_arriving)


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

    def source(have: int, prefix: str) -> Tuple[int, ReadInto]:
        say({"have": have, "prefix": prefix})
        line = read_line(lambda: os.read(0, 1))
        if not line:
            raise Refused("the other side has gone")
        return int(json.loads(line)["from"]), from_input

    return take_in(Image(root, request), source)


def fetch(root: str, request: Dict[str, Any]) -> Answer:
    """Take the image in from another machine that serves it, at the first of ``endpoints`` that answers."""

    def source(have: int, prefix: str) -> Tuple[int, ReadInto]:
        connection = reach(request["endpoints"])
        connection.sendall(("%s %d\n" % (request["token"], have)).encode())
        return have, connection.recv_into

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
    at, read = source(have, taken.hexdigest())
    if at != have:
        at, taken = 0, hashlib.sha256()
    os.ftruncate(descriptor, at)
    os.lseek(descriptor, at, os.SEEK_SET)
    arrival, told = Arrival(descriptor, at, taken), 0.0
    while arrival.at < image.size and arrival.take(read, image.size - arrival.at):
        if report and time.monotonic() - told > 0.25:
            told = time.monotonic()
            say({"got": arrival.at})
    if arrival.at < image.size:
        raise Refused("cut off after %d of %d bytes" % (arrival.at, image.size))
    found = arrival.digest()
    if found != image.sha:
        os.unlink(image.part)
        raise Refused("what arrived is not the image: its sha256 is %s" % found)


def serve(root: str, request: Dict[str, Any]) -> Answer:
    """Give the image to the one machine that knows ``token``, over addresses from which ``peers`` can be reached.

    It may still be on its way to this one: whoever takes it looks at its digest.
    """
    growing = Image(root, request).growing()
    with growing.file:
        return {"done": hand_over(growing, request["token"], request["peers"])}


ACTIONS = {
    "look": look,
    "receive": receive,
    "fetch": fetch,
    "serve": serve,
}
