"""Code on one machine: ``<root>/code/<digest>/``, there or not, written from a request. Python 3.8, no third party."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import shutil
from typing import Any, Dict, Iterator

from vpipe_cli.onhost.files import checked, sync_folder, write_all
from vpipe_cli.onhost.program import Answer, Refused, act


def main(request: Dict[str, Any]) -> None:
    """Do ``request["do"]``: has, unpack."""
    act(ACTIONS, request)


def has(root: str, request: Dict[str, Any]) -> Answer:
    """Whether the code of that digest is here, unchanged."""
    path = os.path.join(root, "code", checked(request["digest"]))
    return {"path": path, "here": os.path.isdir(path) and code_digest(path) == request["digest"]}


def unpack(root: str, request: Dict[str, Any]) -> Answer:
    """Write ``files``, triples of a relative path, whether it is executable, and base64, as the code of ``digest``."""
    path = os.path.join(root, "code", checked(request["digest"]))
    aside = "%s.%d.new" % (path, os.getpid())
    shutil.rmtree(aside, ignore_errors=True)
    os.makedirs(aside, 0o700)
    try:
        for name, executable, content in request["files"]:
            target = inside(aside, name)
            os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o500 if executable else 0o400)
            try:
                write_all(descriptor, base64.b64decode(content))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if code_digest(aside) != request["digest"]:
            raise Refused("what arrived is not the code: it has another digest")
        put_in_place(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return {"path": path}


def put_in_place(aside: str, path: str) -> None:
    """Give a folder its name; what had the name before, changed by somebody, goes."""
    for _ in range(3):
        try:
            os.rename(aside, path)
            sync_folder(os.path.dirname(path))
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if code_digest(path) == os.path.basename(path):
            return  # another launch was faster
        old = "%s.old" % aside
        os.rename(path, old)
        shutil.rmtree(old, ignore_errors=True)
    raise Refused("%s changes while it is written" % path)


def inside(folder: str, name: str) -> str:
    """The path of a member. Raises Refused for one that would lie elsewhere."""
    if name.startswith("/") or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise Refused("%r is no path inside the code" % name)
    return os.path.join(folder, name)


def code_digest(folder: str) -> str:
    """The digest of all files, as ``container.code`` takes it; empty where one is a link."""
    taken = hashlib.sha256()
    for path in sorted(members(folder)):
        full = os.path.join(folder, path)
        if os.path.islink(full):
            return ""
        with open(full, "rb") as file:
            content = file.read()
        head = json.dumps([path, bool(os.stat(full).st_mode & 0o100), len(content)])
        taken.update(head.encode() + b"\n" + content)
    return taken.hexdigest()


def members(folder: str) -> Iterator[str]:
    """The relative paths of all files but those Python makes."""
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            yield os.path.relpath(os.path.join(top, name), folder)


ACTIONS = {
    "has": has,
    "unpack": unpack,
}
