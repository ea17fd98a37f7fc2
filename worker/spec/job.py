"""job.json and plan.json: a run as resolved values that every rank reads, and the digest they agree on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import Field

from worker.spec.cluster import ClusterSpec, Section

SCHEMA = 1


class Plan(Section):
    """Which layers run where, and how much of each stage is recomputed."""

    partition: list[int] = Field(description="layers per stage")
    recompute_ratio: list[float] = Field(description="share of recomputed layers per stage")
    reason: str = Field(description="who chose the partition, and by which cost")

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.partition)

    def layers_of(self, stage: int) -> range:
        """Indices of the layers of a stage."""
        start = sum(self.partition[:stage])
        return range(start, start + self.partition[stage])


class Placement(Section):
    """One rank: the stage it runs and the device it runs on."""

    rank: int
    stage: int
    host: str
    device: str = Field(description='"cpu" or "cuda:N"')
    threads: int


class Job(Section):
    """Everything a rank needs to know, written once to job.json."""

    version: int = SCHEMA
    run: str
    spec: ClusterSpec
    plan: Plan
    ranks: list[Placement]

    def digest(self) -> str:
        """SHA-256 over everything that must be equal on all ranks, as hex."""
        text = self.model_dump_json(exclude={"run"}) + code_digest()
        return hashlib.sha256(text.encode()).hexdigest()


def code_digest() -> str:
    """SHA-256 over the worker's source files, as hex: two ranks with other code must not train together."""
    root = Path(__file__).resolve().parent.parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()
