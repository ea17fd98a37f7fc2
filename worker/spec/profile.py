"""The profile: what each layer of a model costs on a device, and what the links between devices carry.

Seconds are for one minibatch, bytes for one minibatch or one copy of the parameters. ``vpipe profile`` writes it,
``vpipe plan`` reads it, and neither needs to know how the numbers came about.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from worker.errors import UsageError
from worker.spec.cluster import ClusterSpec
from worker.spec.section import Section

SCHEMA = 1
MAX_BYTES = 64_000_000
_MOST_SHOWN = 8

Seconds = Annotated[float, Field(ge=0.0)]
Bytes = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0.0)]


class LayerProfile(Section):
    """One layer, measured. A backward in one piece takes ``input_grad + weight_grad``."""

    name: str
    forward: Seconds
    input_grad: Seconds
    weight_grad: Seconds
    recompute: Seconds = Field(description="what its backward takes longer where its activations are recomputed")
    update: Seconds = Field(0.0, description="the optimizer's part of an update")
    spread: Seconds = Field(0.0, description="half the interquartile range of forward and backward over their median")
    activation_bytes: Bytes = Field(description="kept from forward to backward, its inputs among them")
    output_bytes: Bytes = Field(description="crossing the cut behind it; gradients come back over it")
    workspace_bytes: Bytes = Field(0, description="needed at most, beyond what is kept, while it runs")
    parameter_bytes: Bytes
    gradient_bytes: Bytes
    optimizer_bytes: Bytes

    @property
    def seconds(self) -> float:
        """Forward and backward."""
        return self.forward + self.input_grad + self.weight_grad


class LinkProfile(Section):
    """The way from one device to the next in rank order and back, in seconds and bytes per second."""

    latency: Seconds = 0.0
    forward: Rate = Field(description="bytes per second to the next device")
    backward: Rate = Field(description="bytes per second back")
    is_shared: bool = Field(False, description="both directions share one bandwidth, as PipeDream counts it")


class Profile(Section):
    """profile.json."""

    schema_version: int = Field(SCHEMA, alias="schema")
    source: str = Field("measured", description="measured; or pipedream, for one read from graph.txt")
    model: str | None = Field(None, description="digest of the model, its shapes and its arithmetic; None: unnamed")
    device: str = Field("unknown", description="what it was measured on")
    versions: dict[str, str] = Field(default_factory=dict)
    threads: int | None = Field(None, description="threads a rank had")
    processes: int = Field(1, description="ranks that measured side by side on one machine, to share it as in a run")
    repeats: int = 0
    layers: Annotated[list[LayerProfile], Field(min_length=1)]
    links: list[LinkProfile] = Field(default_factory=list, description="one for all, or one for each neighbours")
    speeds: list[Rate] = Field(default_factory=list, description="of each device, relative to the one profiled")
    base_bytes: Bytes = Field(0, description="what a rank holds before it has a layer: libraries, buffers")
    action_seconds: Seconds = Field(0.0, description="what a forward or a backward costs a rank beside its layers")
    copy_rate: Rate | None = Field(None, description="bytes per second of copying weights into another version")

    model_config = {**Section.model_config, "populate_by_name": True}

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


def from_json(text: str | bytes, where: str) -> Profile:
    """A profile from its text.

    Raises:
        UsageError: it is not JSON, or a number is missing, negative, not finite or of another type; names each place.
    """
    try:
        profile = Profile.model_validate_json(text)
    except ValidationError as error:
        problems = [f"{where}: {_place(found['loc'])}{found['msg']}" for found in error.errors(include_url=False)]
        more = [f"{where}: and {len(problems) - _MOST_SHOWN} more"] if len(problems) > _MOST_SHOWN else []
        raise UsageError("\n".join(problems[:_MOST_SHOWN] + more), "measure again with `vpipe profile`") from None
    if profile.schema_version != SCHEMA:
        raise UsageError(f"{where}: schema is {profile.schema_version}; this vpipe reads {SCHEMA}")
    return profile


def read(path: Path) -> bytes:
    """The bytes of a profile. Raises UsageError: it cannot be read, or is no profile by its size."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", "`vpipe profile` writes one") from None
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES // 1_000_000} MB; no profile is")
    return raw


def model_digest(spec: ClusterSpec) -> str:
    """Hex digest of all that layers' costs depend on: model, shapes, arithmetic, update rule. Paths and seeds are not.

    The entry of a user's own model counts by its name and arguments, not by its code.
    """
    data = spec.data.model_dump(mode="json", exclude={"path", "source", "split"})
    model = spec.model.model_dump(mode="json", exclude=set(spec.model.starts))
    costs = [model, data, spec.precision, spec.optimizer.name, spec.optimizer.momentum]
    return hashlib.sha256(json.dumps(costs, sort_keys=True).encode()).hexdigest()[:32]


def _place(path: tuple[str | int, ...]) -> str:
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return f"{dotted}: " if dotted else ""
