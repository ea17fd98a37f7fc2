"""The pipeline section of cluster.yml, and which schedule goes with what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from worker.spec.section import Count, Misfit, Ratio, Section

SYNC_MODES = {
    "1f1b": ("asp", "bsp"),
    "none": ("asp", "bsp"),
    "2bw": ("asp",),
    "accumulate": ("asp",),
    **dict.fromkeys(("gpipe", "interleaved", "zb-h1", "zb-h2", "zb-v", "zb-auto"), ("bsp",)),
}
"""The sync_modes of every schedule."""

REPLICATED = ("1f1b", "gpipe", "interleaved", "zb-h1", "zb-h2", "zb-v", "zb-auto", "none")
"""Schedules whose stages may have several ranks."""

CHUNKED = ("interleaved", "zb-v")
"""Schedules under which a rank holds several stages."""

OWN_DEPTH = {"1f1b": "as many", "zb-h1": "as many", "zb-h2": "twice as many", "zb-auto": "as many"}
"""Schedules whose depth, with replicas, is worked out from the number of ranks; and how many minibatches that is."""


class PipelineSpec(Section):
    """How the model is cut and how minibatches flow through the cuts."""

    stages: Count | None = Field(None, description="number of stages; default: one per device in machines")
    partition: Literal["auto"] | list[Count] = Field(
        "auto", description="layers per stage, or auto to balance their cost"
    )
    recompute_ratio: Literal["auto"] | Ratio | list[Ratio] = Field(
        0.0,
        description="share of a stage's layers, from its end, whose activations are recomputed; or one per stage; "
        "auto: as few as memory asks for",
    )
    offload_ratio: Ratio = Field(
        0.0,
        description="share of a stage's layers, before the recomputed ones, whose activations wait in host memory",
    )
    compile: bool = Field(False, description="torch.compile each layer but the loss, before the run is ready")
    sync_mode: Literal["asp", "bsp"] = Field(
        "asp", description="asp: update after every backward, with weight stashing; bsp: flush, then update"
    )
    schedule: Literal[
        "1f1b", "gpipe", "interleaved", "zb-h1", "zb-h2", "zb-v", "zb-auto", "2bw", "accumulate", "none"
    ] = Field(
        "1f1b",
        description="order of forwards and backwards; bsp: gpipe, 1f1b, interleaved (several stages per device), "
        "zb-h1, zb-h2, zb-v (two stages per device, there and back), zb-auto; asp: 1f1b, 2bw, accumulate; "
        "none: one minibatch at a time",
    )
    minibatches_per_step: Count | None = Field(
        None, description="bsp, 2bw and accumulate: minibatches between two updates; default 8, or stages if more"
    )
    replicas: Count | Annotated[list[Count], Field(min_length=1)] = Field(
        1,
        description="ranks per stage that share its minibatches; or one number per stage, all alike where a device "
        "holds several stages",
    )
    in_flight: Literal["auto"] | Count = Field(
        "auto", description="minibatches admitted at once; auto: the schedule's own"
    )

    def misfits(self) -> Iterator[Misfit]:
        """Each sync_mode has its own keys; lists have one entry per stage."""
        if self.sync_mode not in SYNC_MODES[self.schedule]:
            needed = SYNC_MODES[self.schedule][0]
            yield Misfit(f"is {self.schedule}, which needs sync_mode {needed}", ("schedule", "sync_mode"))
        elif self.sync_mode == "asp" and self.schedule in ("1f1b", "none") and self.minibatches_per_step is not None:
            keys = ("minibatches_per_step", "sync_mode")
            yield Misfit(f"belongs to sync_mode bsp; asp with {self.schedule} updates after every minibatch", keys)
        if self.replicas != 1 and self.schedule not in REPLICATED:
            message = f"needs schedule {', '.join(REPLICATED)}; {self.schedule} runs one rank per stage"
            yield Misfit(message, ("replicas", "schedule"))
        elif self.schedule in CHUNKED and isinstance(self.replicas, list) and len(set(self.replicas)) > 1:
            message = f"is {self.replicas}; {self.schedule} needs equally many for all stages, which share their ranks"
            yield Misfit(message, ("replicas", "schedule"))
        ratios = self.recompute_ratio if isinstance(self.recompute_ratio, list) else [self.recompute_ratio]
        if self.schedule == "accumulate" and any(ratio != "auto" and ratio for ratio in ratios):
            message = "needs another schedule: under accumulate a layer would be recomputed with newer weights"
            yield Misfit(message, ("recompute_ratio",))
        most = max((ratio for ratio in ratios if ratio != "auto"), default=0.0)
        if most + self.offload_ratio > 1:
            message = f"leaves layers no choice: with recompute_ratio {most:g} it must be at most {1 - most:g}"
            yield Misfit(message, ("offload_ratio", "recompute_ratio"))
        if self.compile and self.schedule.startswith("zb-"):
            message = f"needs another schedule: {self.schedule} takes the backward of layers apart"
            yield Misfit(message, ("compile", "schedule"))
        if self.compile and self.offload_ratio:
            yield Misfit("does not go with offload_ratio", ("compile", "offload_ratio"))
        if self.in_flight != "auto" and self.schedule == "none":
            yield Misfit("must be left out: with schedule none one minibatch is in flight", ("in_flight", "schedule"))
        elif self.in_flight != "auto" and self.schedule == "zb-v":
            yield Misfit("must be left out: zb-v has one depth, that of 1f1b", ("in_flight", "schedule"))
        elif self.in_flight != "auto" and self.schedule in OWN_DEPTH and self.replicas != 1:
            depth = f"{self.schedule} admits {OWN_DEPTH[self.schedule]} minibatches as there are ranks"
            message = f"must be left out: with replicas, {depth}"
            yield Misfit(message, ("in_flight", "replicas"))
        for key in ("partition", "recompute_ratio", "replicas"):
            value = getattr(self, key)
            if self.stages is not None and isinstance(value, list) and len(value) != self.stages:
                message = f"has {_count(len(value), 'entry', 'entries')} for {_count(self.stages, 'stage')}"
                yield Misfit(message, (key, "stages"))


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
