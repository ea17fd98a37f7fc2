"""The images of the machine where vpipe is typed: files by digest, and what each was built from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpipe_cli.runs.store import home
from worker.errors import ImageError
from worker.spec.files import write_atomic

CHUNK = 1 << 20


@dataclass(frozen=True)
class Image:
    """A finished image on this machine. ``built`` says whether it was made just now."""

    path: Path
    sha256: str
    size: int
    source: str
    built: bool = False


def folder() -> Path:
    """Where built images lie, ``<sha256>.sif``, as on every machine."""
    return home() / "images"


def finished(path: Path) -> Image:
    """A .sif as it lies there. Its digest is taken anew only if the file changed. Raises ImageError if it is none."""
    try:
        with path.open("rb") as file:
            if not _is_sif(file.read(64)):
                raise ImageError(
                    f"{path} is no SIF image", "`apptainer build FILE.sif` or `vpipe image build` make one"
                )
        return Image(path, _digest(path), path.stat().st_size, str(path))
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from None


def built(key: str) -> Image | None:
    """The image made before from what ``key`` stands for, if it is still there and whole."""
    record = _read(folder() / "built" / f"{key}.json")
    path = folder() / f"{record.get('sha256')}.sif"
    if not record or not path.is_file() or path.stat().st_size != record.get("size"):
        return None
    if _digest(path) != record["sha256"]:
        path.unlink()  # damaged; it is made again
        return None
    return Image(path, str(record["sha256"]), int(record["size"]), str(record.get("source", "")))


def keep(fresh: Path, key: str, source: str) -> Image:
    """Give a fresh image its name, and write down what it was made from."""
    sha256, size = _digest(fresh), fresh.stat().st_size
    path = folder() / f"{sha256}.sif"
    fresh.chmod(0o444)
    fresh.replace(path)
    (folder() / "built").mkdir(mode=0o700, exist_ok=True)
    record = {"sha256": sha256, "size": size, "source": source, "time": time.time()}
    write_atomic(folder() / "built" / f"{key}.json", json.dumps(record) + "\n")
    return Image(path, sha256, size, source, built=True)


def share(path: Path, sha256: str, root: str) -> str:
    """Give an image its name among those below ``root``: a link where that can be, else a copy. Raises OSError."""
    target = os.path.join(root, "images", f"{sha256}.sif")
    if os.path.exists(target):
        return target
    os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
    aside = f"{target}.{os.getpid()}"
    try:
        os.link(path, aside)
    except OSError:  # another disk
        shutil.copyfile(path, aside)
    os.replace(aside, target)
    return target


def sources() -> dict[str, str]:
    """What the images here were built from, by digest."""
    records = [_read(path) for path in sorted((folder() / "built").glob("*.json"))]
    return {str(record["sha256"]): str(record.get("source", "")) for record in records if "sha256" in record}


def digest(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sum(file)


def _sum(file: Any) -> str:
    taken = hashlib.sha256()
    while piece := file.read(CHUNK):
        taken.update(piece)
    return taken.hexdigest()


def _digest(path: Path) -> str:
    """The sha256, from memory if the file is as it was when it was last taken."""
    found = path.stat()
    now = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
    memory = folder() / "known" / f"{name}.json"
    known = _read(memory)
    if known.get("as_it_is") == now:
        return str(known["sha256"])
    sha256 = digest(path)
    memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(memory, json.dumps({"path": str(path), "as_it_is": now, "sha256": sha256}) + "\n")
    return sha256


def _is_sif(head: bytes) -> bool:
    """Whether these are the first bytes of a SIF: a line that starts an interpreter, then the magic word."""
    return b"SIF_MAGIC" in head


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
