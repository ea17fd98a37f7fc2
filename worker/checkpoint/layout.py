"""The names inside ``checkpoints/``. A folder called ``step-N`` is a committed checkpoint; no other name is one.

``step-N.tmp-K`` is being written by attempt K; ``step-N.damaged-K`` was set aside by attempt K, which could not use it;
``step-N.deleting`` is on its way out. One rename makes ``step-N``, of a folder that was complete and on the disk.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"
FILE = re.compile(r"(layer|rank)-\d{1,8}(-[A-Za-z0-9._-]{1,80})?\.safetensors")
"""What a file of tensors may be called: nothing else is opened, wherever a manifest may point."""

_STEP = re.compile(r"step-(\d{1,18})")
_UNFINISHED = re.compile(r"step-\d{1,18}\.(tmp-\d+|deleting)")


def committed(folder: Path, step: int) -> Path:
    """The folder of the checkpoint after ``step`` steps."""
    return folder / f"step-{step}"


def temporary(folder: Path, step: int, attempt: int) -> Path:
    """Where ``attempt`` writes it."""
    return folder / f"step-{step}.tmp-{attempt}"


def layer_file(index: int, name: str) -> str:
    """The file of one layer's weights, buffers and optimizer state."""
    return f"layer-{index:04d}-{re.sub('[^A-Za-z0-9._-]', '_', name)[:80]}.safetensors"


def rank_file(rank: int) -> str:
    """The file of what a rank has of its own: the states of its random number generators."""
    return f"rank-{rank}.safetensors"


def steps(folder: Path) -> list[int]:
    """The steps of all committed checkpoints, newest first. A link is none."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    matches = (_STEP.fullmatch(name) for name in names)
    found = {int(match[1]) for match in matches if match and match[0] == f"step-{int(match[1])}"}
    return sorted((step for step in found if _is_folder(committed(folder, step))), reverse=True)


def set_aside(folder: Path, step: int, attempt: int) -> None:
    """Give a checkpoint that cannot be used another name, so that its step can be saved again. Nothing is deleted."""
    path = committed(folder, step)
    aside = path.with_name(f"{path.name}.damaged-{attempt}")
    if _is_folder(path):
        if aside.exists():  # the same attempt, restarted by hand
            shutil.rmtree(aside)
        path.rename(aside)


def prune(folder: Path, keep: int) -> list[int]:
    """Delete all but the newest ``keep`` checkpoints; the steps that went. Only to be called behind a fresh commit,
    whose files have been read back: so one that verifies always stays."""
    old = steps(folder)[max(1, keep) :]
    for step in old:
        path = committed(folder, step)
        going = path.with_name(f"{path.name}.deleting")
        with suppress(OSError):  # what cannot be deleted stays; the next start tries again
            path.rename(going)
            shutil.rmtree(going)
    return old


def clean(folder: Path) -> list[str]:
    """Delete what attempts that are over did not finish; the names. Only where no other attempt can live."""
    try:
        leftovers = [name for name in os.listdir(folder) if _UNFINISHED.fullmatch(name)]
    except FileNotFoundError:
        return []
    for name in leftovers:
        shutil.rmtree(folder / name, ignore_errors=True)
    return sorted(leftovers)


def fsync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def extra(path: Path, known: Iterable[str]) -> list[str]:
    """Names in a checkpoint's folder that its manifest does not list."""
    return sorted(set(os.listdir(path)) - {*known, MANIFEST})


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
