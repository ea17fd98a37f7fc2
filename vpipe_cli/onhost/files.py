"""Files of a machine: in pieces, written aside, made durable, named by their sha256. Python 3.8, no third party."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any, Dict, Iterator, List, Union

from vpipe_cli.onhost.program import Answer, Refused

CHUNK = 1 << 20
DIGEST = re.compile(r"[0-9a-f]{64}")


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
    """The first ``count`` bytes of a file, or fewer where it ends."""
    with open(path, "rb") as file:
        while count > 0 and (piece := file.read(min(CHUNK, count))):
            count -= len(piece)
            yield piece


def write_all(descriptor: int, data: Union[bytes, memoryview]) -> None:
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
