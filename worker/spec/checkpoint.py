"""The section ``checkpoint`` of cluster.yml: when a run is saved, and how much of it is kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from worker.spec.section import Count, Positive, Section


class CheckpointSpec(Section):
    """When a run is saved, and how much of it is kept. Under asp the pipeline drains at every checkpoint."""

    every_steps: Count | None = Field(
        500, description="steps between two checkpoints; the last step has one too; null: none are written"
    )
    keep: Count = Field(3, description="checkpoints kept, the newest; an older one goes once a newer one is verified")
    copies: Annotated[int, Field(ge=0, le=16)] = Field(
        1, description="on disks of their own: other machines that have a copy of a machine's part, and may replace it"
    )
    timeout: Positive = Field(600.0, description="seconds until a checkpoint that a rank has not written is given up")
