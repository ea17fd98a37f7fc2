"""A recomputed layer: the same gradients, nothing kept but its inputs, and no more run again than is asked for."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from worker.errors import ModelError
from worker.recompute import recomputed


class Block(nn.Module):
    """Two maps with something between them whose result is saved."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.between: list[weakref.ref[Tensor]] = []
        self.ends = 0

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        between = self.first(hidden).sigmoid()
        self.between.append(weakref.ref(between))
        result = self.last(between)
        self.ends += 1
        return (result,)


def gradients(block: Block, inputs: Tensor) -> list[Tensor]:
    found = [parameter.grad for parameter in block.parameters()]
    assert None not in found and inputs.grad is not None
    return [*(each for each in found if each is not None), inputs.grad]


def data() -> Tensor:
    return torch.arange(12.0).view(3, 4).requires_grad_()


def test_gradients_are_those_of_a_layer_that_keeps_all() -> None:
    plain, block, first, second = Block(), Block(), data(), data()
    plain(first)[0].square().sum().backward()
    recomputed("block", block, block, second)[0].square().sum().backward()
    for one, other in zip(gradients(plain, first), gradients(block, second), strict=True):
        assert torch.equal(one, other)


def test_nothing_is_kept_between_and_what_is_not_asked_for_does_not_run_again() -> None:
    block, inputs = Block(), data()
    (result,) = recomputed("block", block, block, inputs)
    assert [each() for each in block.between] == [None]
    result.sum().backward()
    assert len(block.between) == 2 and block.ends == 1
    assert [each() for each in block.between] == [None, None]


def test_in_a_row_each_runs_again_once() -> None:
    blocks, (hidden,) = [Block() for _ in range(3)], (data(),)
    for block in blocks:
        (hidden,) = recomputed("block", block, block, hidden)
    hidden.sum().backward()
    assert [len(block.between) for block in blocks] == [2, 2, 2]


def more(block: Block, hidden: Tensor) -> tuple[Tensor]:
    return (block.last(block.first(hidden.exp()).sigmoid()),)


def fewer(block: Block, hidden: Tensor) -> tuple[Tensor]:
    return (block.first(hidden),)


@pytest.mark.parametrize("other", [more, fewer])
def test_a_layer_that_does_other_things_the_second_time_is_named(other: object) -> None:
    block = Block()
    assert callable(other)
    (result,) = recomputed("odd", block, lambda hidden: other(block, hidden), data())
    with pytest.raises(ModelError, match="layer odd did other things when it was recomputed"):
        result.sum().backward()
