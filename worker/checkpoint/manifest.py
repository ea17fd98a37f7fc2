"""manifest.json: what is in a checkpoint, with the hash of every file and of itself.

Its text is canonical: sorted keys, no spaces, one line. So it has exactly one form for one content, and its own hash,
over everything but that hash, says whether a byte of it was changed. A hash beside the data shows damage, not forgery:
who can write the folder can write a manifest that fits.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from worker.checkpoint import layout
from worker.errors import CheckpointError
from worker.spec.section import Section

FORMAT = 1
MOST_BYTES = 256 << 20


class FileEntry(Section):
    """One file of tensors."""

    bytes: int
    sha256: str
    rank: int = Field(description="who wrote it; on disks of their own, that rank's host has it")


class ParameterEntry(Section):
    """One owned parameter of the model."""

    file: str
    shape: list[int]
    dtype: str


class RankEntry(Section):
    """What a rank knows that is no tensor."""

    stage: int
    host: str
    scaler: dict[str, float] | None = Field(None, description="under fp16: the loss scale, and good updates")


class Manifest(Section):
    """A checkpoint: everything a resumed run needs to know beside the tensors."""

    format: int = FORMAT
    run: str
    attempt: int
    step: int = Field(description="steps done: where in the learning rate's course a resumed run begins")
    data_position: int = Field(description="minibatches of data used up")
    time: float = Field(description="Unix time of the commit")
    spec: dict[str, Any] = Field(description="the job's; not typed, so that a vpipe with other keys can read it")
    plan: dict[str, Any]
    job_digest: str
    code_digest: str
    versions: dict[str, str]
    has_older: bool = Field(False, description="2bw: the version before the current one is in it too")
    files: dict[str, FileEntry]
    layers: dict[str, str] = Field(description="layer name -> file")
    parameters: dict[str, ParameterEntry] = Field(description="by full name; tied ones once, under their owner's name")
    optimizer_values: dict[str, dict[str, float]] = Field(description="state that is no tensor, by full name and key")
    ranks: dict[str, RankEntry]

    @property
    def bytes(self) -> int:
        """Size of all files of tensors."""
        return sum(entry.bytes for entry in self.files.values())

    def text(self) -> str:
        """The canonical text, its own hash included."""
        body = self.model_dump(mode="json")
        return _canonical({**body, "sha256": _hash(body)}) + "\n"


def read(path: Path) -> Manifest:
    """The manifest of the checkpoint in the folder ``path``.

    Raises CheckpointError where there is none, or it is not what was written.
    """
    where = path / layout.MANIFEST
    try:
        raw = _read(where)
        body = json.loads(raw)
        claimed = body.pop("sha256")
    except OSError as error:
        raise CheckpointError(f"{where} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"{where} is no manifest") from None
    if claimed != _hash(body) or raw != f"{_canonical({**body, 'sha256': claimed})}\n".encode():
        raise CheckpointError(f"{where} was changed: its content does not have the hash it names")
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"{where} has format {body.get('format')}; this vpipe reads {FORMAT}", "use the vpipe that wrote it"
        )
    try:
        manifest = Manifest.model_validate_json(_canonical(body))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        hint = "resume with the vpipe that wrote it, see `versions` there"
        raise CheckpointError(f"{where} does not fit this vpipe: {place}: {first['msg']}", hint) from None
    _check_names(where, manifest)
    return manifest


def _check_names(where: Path, manifest: Manifest) -> None:
    """Files must have names of ours, and lie in this folder."""
    named = [*manifest.layers.values(), *(entry.file for entry in manifest.parameters.values())]
    for name in manifest.files:
        if not layout.FILE.fullmatch(name):
            raise CheckpointError(f"{where} names {name!r}, which cannot be a file of a checkpoint")
    if missing := [name for name in named if name not in manifest.files]:
        raise CheckpointError(f"{where} says nothing of {missing[0]!r}, which it needs")


def _read(path: Path) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise ValueError
    return raw


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(body: object) -> str:
    return hashlib.sha256(_canonical(body).encode()).hexdigest()
