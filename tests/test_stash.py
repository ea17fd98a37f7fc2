"""Weight versions: who keeps them, who copies, and what they cost."""

from __future__ import annotations

import torch
from torch import nn

from worker.stash import WeightStash


def stash_of_one() -> tuple[nn.Linear, WeightStash]:
    module = nn.Linear(2, 2)
    return module, WeightStash({"layer": module}, {})


def update(stash: WeightStash) -> None:
    stash.before_update()
    with torch.no_grad():
        for parameter in stash.parameters.values():
            parameter.add_(1.0)
    stash.after_update()


def test_update_is_in_place_when_nothing_is_in_flight() -> None:
    _, stash = stash_of_one()
    storage = stash.parameters["layer.weight"].data_ptr()
    stash.release(stash.acquire())
    update(stash)
    assert stash.parameters["layer.weight"].data_ptr() == storage
    assert stash.current.number == 1


def test_update_leaves_a_version_in_flight_alone() -> None:
    _, stash = stash_of_one()
    version = stash.acquire()
    before = version.leaves["layer.weight"].clone()
    update(stash)
    assert torch.equal(version.leaves["layer.weight"], before)
    assert torch.equal(stash.current.leaves["layer.weight"], before + 1.0)


def test_only_the_first_update_after_a_forward_copies() -> None:
    _, stash = stash_of_one()
    stash.acquire()
    update(stash)
    storage = stash.parameters["layer.weight"].data_ptr()
    update(stash)
    assert stash.parameters["layer.weight"].data_ptr() == storage


def test_modules_compute_with_the_installed_version() -> None:
    module, stash = stash_of_one()
    old = stash.acquire()
    update(stash)
    x = torch.ones(1, 2)
    stash.install(stash.current)
    new_result = module(x)
    stash.install(old)
    assert torch.allclose(new_result, module(x) + 3.0)  # two weights and a bias are each one higher


def test_gradients_add_up_in_the_order_of_collection_over_versions() -> None:
    module, stash = stash_of_one()
    for scale in (1.0, 10.0):
        version = stash.acquire()
        stash.install(version)
        (module(torch.ones(1, 2)).sum() * scale).backward()
        stash.collect(version)
    assert torch.equal(stash.gradients["layer.bias"], torch.full((2,), 11.0))


def test_borrowed_parameter_has_a_gradient_of_its_own() -> None:
    first, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    stash = WeightStash({"first": first, "last": last}, {"last.weight": "first.weight"})
    version = stash.acquire()
    stash.install(version)
    last(first(torch.ones(1, 2))).sum().backward()
    stash.collect(version)
    assert list(stash.parameters) == ["first.weight"]
    assert set(stash.gradients) == {"first.weight", "last.weight"}


def test_a_lent_version_replaces_only_the_borrowed_leaf() -> None:
    module = nn.Linear(2, 2)
    stash = WeightStash({"layer": module}, {"layer.weight": "elsewhere.weight"})
    stash.borrow("layer.weight", torch.full((2, 2), 7.0))
    stash.install(stash.current)
    assert torch.allclose(module(torch.ones(1, 2)), 14.0 + module.bias)
    stash.acquire()
    update(stash)
    assert torch.equal(stash.current.leaves["layer.weight"], torch.full((2, 2), 7.0))


def test_the_memory_of_a_finished_version_is_used_again() -> None:
    _, stash = stash_of_one()
    first = stash.acquire()
    storage = stash.parameters["layer.weight"].data_ptr()
    update(stash)
    stash.release(first)
    stash.acquire()
    update(stash)
    assert stash.parameters["layer.weight"].data_ptr() == storage


def test_memory_is_not_used_again_while_a_graph_reads_it() -> None:
    _, stash = stash_of_one()
    versions = []
    for _ in range(3):
        versions.append(stash.acquire())
        update(stash)
    held = [version.leaves["layer.weight"].clone() for version in versions]
    for _ in range(3):
        stash.release(stash.acquire())
        update(stash)
    assert all(torch.equal(v.leaves["layer.weight"], was) for v, was in zip(versions, held, strict=True))
