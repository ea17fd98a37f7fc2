"""What makes two trials the same: their resolved config, the code and the image; not what the sweep is called."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from functools import cache
from pathlib import Path

from worker.spec.cluster import ClusterSpec
from worker.spec.job import Plan, code_digest
from worker.spec.model import EntrySpec

LENGTH = 16


def identity(spec: ClusterSpec, plan: Plan, lane: str = "") -> str:
    """A trial's identity as hex. ``lane`` is what stands for the machines where a trial may run on any of several."""
    config = spec.model_dump(mode="json", exclude={"name"} | ({"machines"} if lane else set()))
    plan_of = plan.model_dump(mode="json", exclude={"reason", "predicted"})
    parts = [config, plan_of, lane, worker_code(), user_code(spec), image(spec)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:LENGTH]


@cache
def worker_code() -> str:
    """Digest of vpipe's own worker, read once: it cannot change under a sweep that is being typed."""
    return code_digest()


def user_code(spec: ClusterSpec) -> str:
    """Digest of the user's own model code, where there is some; empty where it cannot be found here."""
    if not isinstance(spec.model, EntrySpec):
        return ""
    return _digest_of(
        spec.model.entry.partition(":")[0].partition(".")[0], os.environ.get("PYTHONPATH", ""), os.getcwd()
    )


@cache
def _digest_of(package: str, python_path: str, cwd: str) -> str:
    paths = [os.path.join(cwd, path) for path in python_path.split(os.pathsep) if path]
    before = sys.path
    sys.path = [*paths, *before]
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    finally:
        sys.path = before
    if found is None:
        return ""
    roots = [Path(root) for root in found.submodule_search_locations or ()] or [Path(found.origin or "")]
    files = sorted(file for root in roots for file in (root.rglob("*.py") if root.is_dir() else [root]))
    return _digest(files)


def image(spec: ClusterSpec) -> str:
    """Digest of the image's file, or its pinned name in a registry; empty without a container."""
    if spec.container is None:
        return ""
    path = Path(spec.container.image)
    if not path.is_file():
        return spec.container.image
    stat = path.stat()
    return _image_digest(path, stat.st_size, stat.st_mtime_ns)


@cache
def _image_digest(path: Path, _size: int, _changed: int) -> str:
    return _digest([path])


def _digest(files: list[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                total.update(piece)
    return total.hexdigest()
