"""Removes the folders of runs that have ended. Python 3.8, standard library only."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import shutil
from typing import Any, Dict

RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}-\d{8}-\d{6}-[0-9a-f]{4}")


def main(request: Dict[str, Any]) -> None:
    """``folders``; answers for each: ``removed``, ``absent``, ``live``, or what went wrong."""
    print(json.dumps({folder: remove(folder) for folder in request["folders"]}))


def remove(folder: str) -> str:
    """Take one run away: first out of sight, then file by file, so that no half of it is ever taken for a run."""
    place, name = os.path.split(folder)
    if not RUN.fullmatch(name) or os.path.basename(place) != "runs" or os.path.islink(folder):
        return "is no folder of a run"
    if not os.path.isdir(folder):
        return "absent"
    if any(is_held(lock) for lock in glob.glob(os.path.join(glob.escape(folder), "alive*.lock"))):
        return "live"
    aside = os.path.join(place, "." + name)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
        shutil.rmtree(aside)
    except OSError as error:
        return "%s: %s" % (error.filename or folder, error.strerror)
    return "removed"


def is_held(path: str) -> bool:
    """Whether any process holds the lock."""
    with open(path, "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
