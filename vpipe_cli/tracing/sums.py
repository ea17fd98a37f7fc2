"""Where the recorded time of each rank went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vpipe_cli.tracing.read import ACTIONS, WAITS, RankTrace


@dataclass(frozen=True)
class Shares:
    """Seconds of one rank in the recorded steps. ``idle`` is waiting for others, ``data`` for the next minibatch."""

    rank: int
    host: str
    spans: int
    seconds: float
    compute: float
    recompute: float
    send: float
    idle: float
    data: float


def shares(trace: RankTrace) -> Shares:
    """Sums over the actions of a rank; time between windows of recorded steps is left out."""

    def total(*kinds: str) -> float:
        return sum(span.duration for span in trace.spans if span.kind in kinds) / 1e9

    in_actions = total(*ACTIONS)
    waiting, sending = total(*WAITS), total("send")
    return Shares(
        trace.rank,
        trace.host,
        len(trace.spans),
        in_actions,
        in_actions - waiting - sending,
        total("recompute"),
        sending,
        waiting - total("data"),
        total("data"),
    )


def minibatches(traces: Sequence[RankTrace]) -> list[int]:
    """The minibatches that were recorded, in order."""
    spans = (span for trace in traces for span in trace.spans if span.kind in ACTIONS)
    return sorted({span.minibatch for span in spans if span.minibatch is not None})
