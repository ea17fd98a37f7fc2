"""Whether the replicas of a stage still have the same weights, which a faulty memory or device would part in silence.

Each replica puts a checksum of its weights into a row of its own of a table that rides along when gradients are summed:
the others add zeros to that row, so the sum is every replica's checksum, exactly, and no message more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from worker.data.base import TensorSpec

CHECKSUMS = "checksums"
"""The table's name in a sum over replicas."""

PIECES = 4
BITS = 16
"""A checksum has 64 bits, in pieces that a float32 holds exactly."""


def table_spec(replicas: int) -> TensorSpec:
    """float32, a row for each replica."""
    return TensorSpec((replicas, PIECES), torch.float32)


def table(parameters: Mapping[str, Tensor], replica: int, replicas: int) -> Tensor:
    """What one replica adds to the table, as ``table_spec`` has it."""
    own, found = torch.zeros(replicas, PIECES), 0
    for number in checksums(parameters).values():
        found = (31 * found + number) % 2 ** (PIECES * BITS)
    own[replica] = torch.tensor([float(found >> BITS * piece & (1 << BITS) - 1) for piece in range(PIECES)])
    return own


def checksums(parameters: Mapping[str, Tensor]) -> dict[str, int]:
    """A number for each parameter that any one changed bit changes, as sums of all words do."""
    sums = [parameter.detach().view(torch.int32).sum() for parameter in parameters.values()]
    return dict(zip(parameters, torch.stack(sums).tolist(), strict=True)) if sums else {}


def odd_ones(whole: Tensor) -> list[int]:
    """The replicas whose rows of the summed table differ from what most have; all where no row is the commonest."""
    rows = [tuple(row) for row in whole.tolist()]
    counts = Counter(rows).most_common()
    if len(counts) > 1 and counts[0][1] == counts[1][1]:
        return list(range(len(rows)))
    return [replica for replica, row in enumerate(rows) if row != counts[0][0]]
