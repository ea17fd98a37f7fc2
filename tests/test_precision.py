"""Numbers that are not finite are found in a gradient of any size, wherever they are."""

from __future__ import annotations

import math

import pytest
import torch

from worker.precision import SMALL, not_finite

SIZES = {"first": 1, "large": SMALL + 1, "small": SMALL, "last": 3}


def gradients() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(size, generator=generator) for name, size in SIZES.items()}


def test_what_is_finite_is_left_as_it_is() -> None:
    found = gradients()
    assert not_finite(found) is None
    assert all(torch.equal(found[name], start) for name, start in gradients().items())
    assert not_finite({}) is None


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_and_forgotten(name: str, value: float) -> None:
    found = gradients()
    found[name][-1] = value
    assert not_finite(found) == name
    assert not_finite(gradients()) is None


def test_of_several_the_last_is_named() -> None:
    found = gradients()
    found["first"][0] = found["large"][0] = math.nan
    assert not_finite(found) == "large"


def test_a_sum_too_large_is_no_mistake() -> None:
    assert not_finite({"large": torch.full((SMALL + 1,), 3e38)}) is None
