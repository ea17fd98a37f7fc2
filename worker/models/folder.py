"""A folder as ``save_pretrained`` writes it: config.json, and which of its files holds which weight."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from worker.errors import ModelError

CONFIG = "config.json"
LISTING = "model.safetensors.index.json"


def index(folder: Path, instead: str) -> dict[str, Path]:
    """Which file holds which weight; ``instead`` tells how to begin without any.

    Raises:
        ModelError: there are none, or a file is missing or damaged.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if (folder / LISTING).is_file():
        wanted = {str(name) for name in _json(folder / LISTING).get("weight_map", {}).values()}
        if missing := sorted(wanted - {file.name for file in files}):
            raise ModelError(f"{folder} has no {missing[0]}, which its index names", "copy the folder again, whole")
        files = [file for file in files if file.name in wanted]
    if not files:
        raise ModelError(f"{folder} has no *.safetensors", f"save it as such with save_pretrained, or {instead}")
    found: dict[str, Path] = {}
    for file in files:
        with _told(file), safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def shape(file: Path, name: str) -> tuple[int, ...]:
    """The shape of a weight, which is not read for that."""
    from safetensors import safe_open

    with _told(file), safe_open(file, framework="pt") as opened:
        return tuple(opened.get_slice(name).get_shape())


def read(file: Path, name: str, rows: int | None = None) -> Tensor:
    """A weight; of ``rows``, if given, only the first so many. Raises ModelError."""
    from safetensors import safe_open

    with _told(file), safe_open(file, framework="pt") as opened:
        found: Tensor = opened.get_tensor(name) if rows is None else opened.get_slice(name)[:rows]
    return found


def config(folder: Path) -> dict[str, Any]:
    """What config.json says. Raises ModelError."""
    return _json(folder / CONFIG)


@contextmanager
def _told(file: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {error}", "copy it again, or see model.folder") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "model.folder is a folder of save_pretrained") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no table of names and values", "model.folder is a folder of save_pretrained")
    return found
