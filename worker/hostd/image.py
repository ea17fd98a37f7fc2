"""An image on a node: copied from shared storage, or left there by sbcast; verified before it gets its name."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil

from .words import Refused

CHUNK = 1 << 20
PART = ".part"
"""What sbcast gives the file at first."""


def settle(source: str, target: str, sha256: str) -> None:
    """Make ``target`` the image with that digest; nothing where it is. Raises Refused, OSError."""
    os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(target):
            return
        sent = f"{target}{PART}"
        if not (os.path.exists(sent) and _digest(sent) == sha256):
            shutil.copyfile(source, sent)
            if _digest(sent) != sha256:
                os.unlink(sent)
                raise Refused(f"the image {source} is not what the launch was worked out with")
        os.chmod(sent, 0o400)
        os.replace(sent, target)


def _digest(path: str) -> str:
    taken = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(CHUNK), b""):
            taken.update(piece)
    return taken.hexdigest()
