"""Messages between ranks: they arrive as they were sent, are told apart, and name themselves when they do not come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests import ranks
from tests.rig import wait_for
from worker.communication import Address, Communicator, Expected, Inbox
from worker.data.base import TensorSpec
from worker.errors import PeerLost, StallError
from worker.trace import Stopwatch

CPU = torch.device("cpu")
NAMES = ["x", "y"]
FLOAT = TensorSpec((3,), torch.float32)
SHARES = False


def communicator(timeout: float = 20.0, window: int = 1000, varying: tuple[str, ...] = ()) -> Communicator:
    made = Communicator(NAMES, CPU, timeout, Stopwatch(), window, varying)
    if SHARES and dist.is_initialized():
        made.connect()
    return made


def expected(what: str = "x", minibatch: int = 0, spec: TensorSpec = FLOAT) -> Expected:
    return Expected(Address(what, 0, 1, minibatch), spec)


@pytest.fixture(params=[False, True], ids=["network", "shared-memory"], autouse=True)
def shares(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test here runs between machines and on one."""
    global SHARES
    SHARES = request.param
    yield
    SHARES = False


network_only = pytest.mark.parametrize("shares", [False], indirect=True, ids=["network"])


def on_two_ranks(folder: Path, body: Any, timeout: float = 20.0) -> list[Any]:
    def joined(rank: int) -> Any:
        ranks.join(rank, 2, folder, timeout)
        return body(rank)

    return ranks.attempt(2, folder, joined)


def numbered(value: float) -> Tensor:
    return torch.full((3,), float(value))


TENSORS = [
    torch.randn(2, 3),
    torch.randn(4, 4).t()[1:3],
    torch.tensor([True, False]),
    torch.arange(5),
    torch.randn(3).bfloat16(),
    torch.randn(3).half(),
    torch.randn(3, dtype=torch.float64),
    torch.tensor(2.5),
    torch.zeros(0, 3),
    torch.randn(2**20),
]


@pytest.mark.parametrize("varying", [(), ("x",)], ids=["fixed", "varying"])
def test_every_kind_of_tensor_arrives_as_it_was_sent(varying: tuple[str, ...], tmp_path: Path) -> None:
    def body(rank: int) -> list[Tensor]:
        mine, received = communicator(varying=varying), []
        for minibatch, tensor in enumerate(TENSORS):
            wanted = expected(minibatch=minibatch, spec=TensorSpec.of(tensor))
            if rank == 0:
                mine.send(tensor, wanted.address)
            else:
                received.append(mine.post(wanted)())
        mine.finish()
        return received

    received = on_two_ranks(tmp_path, body)[1]
    assert [TensorSpec.of(tensor) for tensor in received] == [TensorSpec.of(tensor) for tensor in TENSORS]
    assert all(map(torch.equal, received, TENSORS))


def test_what_varies_arrives_in_the_shape_it_has(tmp_path: Path) -> None:
    def body(rank: int) -> Tensor:
        mine, wanted = communicator(varying=("x",)), expected(spec=TensorSpec((9, 9), torch.float32))
        if rank == 0:
            mine.send(torch.ones(2, 5), wanted.address)
            mine.finish()
            return torch.ones(0)
        return mine.post(wanted)()

    assert torch.equal(on_two_ranks(tmp_path, body)[1], torch.ones(2, 5))


def test_messages_are_told_apart_whatever_their_order(tmp_path: Path) -> None:
    sent = [("x", 2), ("y", 0), ("x", 0), ("y", 2), ("x", 1)]

    def body(rank: int) -> list[float]:
        mine = communicator()
        if rank == 0:
            for what, minibatch in sent:
                mine.send(numbered(10 * minibatch + NAMES.index(what)), expected(what, minibatch).address)
            mine.finish()
            return []
        receives = [mine.post(expected(what, minibatch)) for what, minibatch in sorted(sent)]
        return [receive()[0].item() for receive in receives]

    assert on_two_ranks(tmp_path, body)[1] == [0.0, 10.0, 20.0, 1.0, 21.0]


def test_sends_are_not_waited_for_within_the_window(tmp_path: Path) -> None:
    """Each rank sends a window's messages before either receives one."""

    def body(rank: int) -> float:
        mine = communicator(timeout=3.0, window=200)
        for minibatch in range(200):
            mine.send(numbered(minibatch), Address("x", rank, 1 - rank, minibatch))
        dist.barrier()
        addresses = [Address("x", 1 - rank, rank, minibatch) for minibatch in range(200)]
        total = sum(mine.post(Expected(address, FLOAT))()[0].item() for address in addresses)
        mine.finish()
        return total

    assert on_two_ranks(tmp_path, body) == [sum(range(200))] * 2


@network_only
def test_memory_of_sends_is_let_go_behind_the_window(tmp_path: Path) -> None:
    def body(rank: int) -> int:
        mine = communicator(window=3)
        for minibatch in range(50):
            if rank == 0:
                mine.send(numbered(minibatch), expected(minibatch=minibatch).address)
            else:
                mine.post(expected(minibatch=minibatch))()
        kept = len(mine._sends)
        mine.finish()
        return kept

    assert on_two_ranks(tmp_path, body) == [3, 0]


def test_a_message_that_never_comes_is_named(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        mine = communicator(timeout=0.3)
        if rank == 1:
            mine.post(expected("y", 7))()
        else:
            mine.post(Expected(Address("x", 1, 0, 0), FLOAT))()

    failures = on_two_ranks(tmp_path, body)
    assert all(isinstance(failure.error, (StallError, PeerLost)) for failure in failures)
    stalls = [str(failure.error) for failure in failures if isinstance(failure.error, StallError)]
    known = {
        "waited too long for y of minibatch 7, rank 0 -> rank 1\n  run.stall_timeout sets the limit, in seconds",
        "waited too long for x of minibatch 0, rank 1 -> rank 0\n  run.stall_timeout sets the limit, in seconds",
    }
    assert stalls and set(stalls) <= known


@network_only
def test_a_send_that_nobody_takes_is_named(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        mine = communicator(timeout=0.3)
        if rank == 0:
            mine.send(torch.zeros(2**20), expected("y", 7).address)
            mine.finish()
        dist.barrier()

    failure = on_two_ranks(tmp_path, body, timeout=3.0)[0]
    assert isinstance(failure.error, StallError)
    assert failure.error.message == "waited too long for y of minibatch 7, rank 0 -> rank 1"


@pytest.mark.parametrize("how", ["receive", "send", "sum"])
def test_a_peer_that_is_gone_is_named(how: str, tmp_path: Path) -> None:
    """Long before the time limit."""

    def body(rank: int) -> None:
        mine = communicator(timeout=50.0)
        if rank == 0:
            wait_for((tmp_path / "connected").exists)
            os._exit(0)
        (tmp_path / "connected").touch()
        if how == "receive":
            mine.post(expected("y", 7))()
        elif how == "send":
            for minibatch in range(2000):
                mine.send(torch.zeros(2**10), Address("x", 1, 0, minibatch))
        else:
            mine.sum_over_ranks(torch.zeros(1), "the gradient norm")

    error = on_two_ranks(tmp_path, body, timeout=50.0)[1].error
    assert isinstance(error, PeerLost)
    what = {"receive": "y of minibatch 7, rank 0 -> rank 1", "send": "x of minibatch ", "sum": "the gradient norm"}
    assert error.message.startswith(f"lost the connection while waiting for {what[how]}")


def test_stages_of_one_rank_hand_over_a_copy() -> None:
    mine, tensor = communicator(), torch.ones(3, requires_grad=True) * 1
    address = Address("x", 0, 0, 4)
    delivery = mine.post(Expected(address, FLOAT))
    mine.send(tensor, address)
    with torch.no_grad():
        tensor.zero_()
    received = delivery()
    assert received.tolist() == [1.0] * 3
    assert not received.requires_grad


class Recorder:
    """In place of a communicator: remembers what was posted; every message is its minibatch's number."""

    def __init__(self) -> None:
        self.posted: list[int] = []

    def post(self, expected: Expected) -> Any:
        self.posted.append(expected.address.minibatch)
        return lambda: numbered(expected.address.minibatch)


def test_receives_are_posted_a_few_actions_ahead() -> None:
    recorder = Recorder()
    inbox = Inbox(recorder, iter([[expected(minibatch=number)] for number in range(6)]), ahead=2)  # type: ignore[arg-type]
    seen = []
    for _ in range(6):
        received = inbox.take()
        seen.append((received["x"][0].item(), len(recorder.posted)))
    assert seen == [(0.0, 3), (1.0, 4), (2.0, 5), (3.0, 6), (4.0, 6), (5.0, 6)]


def test_an_action_without_messages_gets_none() -> None:
    inbox = Inbox(Recorder(), iter([[], [expected("x"), expected("y", 1)], []]))  # type: ignore[arg-type]
    assert [sorted(inbox.take()) for _ in range(3)] == [[], ["x", "y"], []]
