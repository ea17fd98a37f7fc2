"""The images of one machine as things on a shelf: which there are, whether they are whole, which may go.

Names are those of ``images.py``. Python 3.8, standard library only.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any, Dict, List, Set

from vpipe_cli.onhost.files import DIGEST, digest_of, free, read_json
from vpipe_cli.onhost.program import Answer, act

RECENT = 600.0  # seconds since its last use in which an image may be about to be started
PART = re.compile(r"\.([0-9a-f]{64})\..*\.part")


def main(request: Dict[str, Any]) -> None:
    """Do ``request["do"]``: list, verify, prune."""
    act(ACTIONS, request)


def list_images(root: str, request: Dict[str, Any]) -> Answer:
    """Every image here, whole or begun, the one used last first."""
    folder = os.path.join(root, "images")
    used = in_use()
    found = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        path = os.path.join(folder, name)
        part = PART.fullmatch(name)
        if part or (name.endswith(".sif") and DIGEST.fullmatch(name[:-4])):
            sha = part.group(1) if part else name[:-4]
            last = read_json(os.path.join(folder, sha + ".json")).get("used") or os.path.getmtime(path)
            entry = {"sha256": sha, "path": path, "size": os.path.getsize(path), "whole": not part}
            found.append(dict(entry, used=last, in_use=path in used))
    return {"images": sorted(found, key=lambda each: -each["used"]), "free": free(folder), "root": root}


def verify(root: str, request: Dict[str, Any]) -> Answer:
    """Read every image, or those named, and say which is not what its name says."""
    wanted = request.get("sha256s")
    found = []
    for entry in list_images(root, request)["images"]:
        if entry["whole"] and (not wanted or entry["sha256"] in wanted):
            sha = digest_of(entry["path"])
            found.append(dict(entry, ok=sha == entry["sha256"], found=sha))
    return {"images": found, "root": root}


def prune(root: str, request: Dict[str, Any]) -> Answer:
    """Remove images but the newest ``keep``, and of those the oldest until all take ``max_bytes``; none in use."""
    keep, most = request.get("keep"), request.get("max_bytes")
    removed, kept, total, count = [], [], 0, 0
    for entry in list_images(root, request)["images"]:
        recent = time.time() - entry["used"] < request.get("recent", RECENT)
        why = "in use" if entry["in_use"] else "used a moment ago" if recent else ""
        fits = (keep is None or count < keep) and (most is None or total + entry["size"] <= most)
        if why or (fits and entry["whole"]):
            total, count = total + entry["size"], count + 1
            kept.append(dict(entry, why=why if not fits else ""))
            continue
        remove(entry, request)
        removed.append(entry)
    return {"removed": removed, "kept": kept, "root": root}


def remove(entry: Answer, request: Dict[str, Any]) -> None:
    if request.get("dry_run"):
        return
    os.unlink(entry["path"])
    stamp = os.path.join(os.path.dirname(entry["path"]), entry["sha256"] + ".json")
    if entry["whole"] and os.path.exists(stamp):
        os.unlink(stamp)


def in_use() -> List[str]:
    """Images that processes of this machine run in, as far as they may be looked at."""
    found: Set[str] = set()
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        try:
            with open("/proc/%s/environ" % pid, "rb") as file:
                variables = file.read().split(b"\0")
        except OSError:
            continue
        for name in (b"APPTAINER_CONTAINER=", b"SINGULARITY_CONTAINER="):
            found.update(os.fsdecode(each[len(name) :]) for each in variables if each.startswith(name))
    return sorted(found)


ACTIONS = {
    "list": list_images,
    "verify": verify,
    "prune": prune,
}
