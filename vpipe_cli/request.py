"""What was typed to start a run, kept with it, so that ``vpipe resume`` can start from the same file and values."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from vpipe_cli import config, explain, overrides, yamltree
from vpipe_cli.check import PATHS
from worker.checkpoint.manifest import Manifest
from worker.errors import NotFinished
from worker.spec.cluster import ClusterSpec
from worker.spec.files import RunFiles, write_atomic


def keep(files: RunFiles, path: Path, given: Sequence[str], folder: Path | None = None) -> None:
    """Write request.json: ``given`` set values of the file ``path``, whose own relative paths begin in ``folder``."""
    beside = folder or path.absolute().parent
    write_atomic(files.request, json.dumps({"folder": str(beside), "overrides": [_absolute(text) for text in given]}))


def load(files: RunFiles, more: Sequence[str]) -> tuple[ClusterSpec, list[str], Path]:
    """The run's job with ``more`` values set: also all values that were ever set, and where relative paths begin.

    Raises:
        NotFinished: the run's launch did not get as far as writing its files. ConfigError: ``more`` do not fit.
    """
    try:
        request = json.loads(files.request.read_bytes())
    except FileNotFoundError:
        hint = "launch its cluster.yml with `--from` instead"
        raise NotFinished(f"run {files.folder.name} does not say what it was started with", hint) from None
    every, folder = [*request["overrides"], *map(_absolute, more)], Path(request["folder"])
    return config.load(files.cluster, every, folder), every, folder


def write(found: Manifest | None, path: Path) -> None:
    """Write the job that a checkpoint is of as the cluster.yml ``path``; ``machines`` says how many stages it gets."""
    assert found is not None
    job = {**found.spec, "pipeline": {k: v for k, v in found.spec.get("pipeline", {}).items() if k != "stages"}}
    path.write_text(yamltree.dump(job), encoding="utf-8")


def _absolute(text: str) -> str:
    """``key=value`` with the value made absolute where it is a path, as typed in this folder."""
    key, equals, value = text.partition("=")
    name, _ = overrides.complete(key.strip(), explain.names())
    given = yamltree.scalar(value.strip()) is not None  # `null` takes a path away
    is_path = tuple(name.split(".")) in PATHS and given and not os.path.isabs(value)
    return f"{key}{equals}{os.path.abspath(value)}" if is_path else text
