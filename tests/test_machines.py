"""machines -> slots in rank order, or what is wrong with which of them."""

from __future__ import annotations

import pytest

from vpipe_cli.machines import MAX_SLOTS, Slot, read, slots
from worker.errors import UsageError


def devices(*machines: str) -> str:
    return " ".join(slot.device for slot in slots(machines))


@pytest.mark.parametrize(
    "machines, expected",
    [
        (["cpu"], "cpu"),
        (["cpu*3"], "cpu cpu cpu"),
        (["localhost:0"], "cuda:0"),
        (["localhost:0,1"], "cuda:0 cuda:1"),
        (["localhost:0-3"], "cuda:0 cuda:1 cuda:2 cuda:3"),
        (["localhost:4, 0-1"], "cuda:4 cuda:0 cuda:1"),
        (["localhost:1", "cpu*2", "localhost:0", "cpu"], "cuda:1 cpu cpu cuda:0 cpu"),
    ],
)
def test_rank_order_is_the_order_given(machines: list[str], expected: str) -> None:
    assert devices(*machines) == expected
    assert {slot.host for slot in slots(machines)} == {"localhost"}


@pytest.mark.parametrize(
    "machine, words",
    [
        ("localhost", "names no device"),
        ("localhost:", "names no device"),
        ("localhost:a", "'a' in 'localhost:a' is not a GPU number"),
        ("localhost:0,,1", "'' in 'localhost:0,,1' is not a GPU number"),
        ("localhost:-1", "'-1' in"),
        ("localhost:1-2-3", "is not a GPU number"),
        ("localhost:\u0661", "is not a GPU number"),
        ("localhost:3-1", "counts down; write 1-3"),
        ("localhost:0,0", "named twice"),
        ("localhost:0-2,1", "named twice"),
        ("localhost:99999999", "asks for 100000000 devices"),
        ("localhost:0-9999999999", "is not a GPU number"),
        ("cpu*0", "asks for 0 devices"),
        ("cpu*100000", f"a job has 1 to {MAX_SLOTS}"),
        ("cpu*", "is not a count of CPU slots"),
        ("cpu*-1", "is not a count of CPU slots"),
        ("cpu:0", "is not a count of CPU slots"),
        ("gpu1:0", "is not this machine"),
        ("gpu[1-2]:0-3", "is not this machine"),
        ("", "is not this machine"),
        ("\x1b[31m", "'\\x1b[31m' is not this machine"),
    ],
)
def test_what_cannot_be_used_says_why(machine: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        slots([machine])
    assert words in caught.value.message


def test_every_wrong_machine_is_told_apart_from_the_right_ones() -> None:
    found, wrong = read(["cpu", "gpu1:0", "localhost:0", "localhost:0,1", "cpu"])
    assert found == [Slot("localhost", "cpu"), Slot("localhost", "cuda:0"), Slot("localhost", "cpu")]
    assert list(wrong) == [1, 3]


def test_all_machines_together_are_bounded() -> None:
    assert len(slots([f"cpu*{MAX_SLOTS - 1}", "cpu"])) == MAX_SLOTS
    with pytest.raises(UsageError, match=r"machines\[1\]: 'machines' asks for 1025 devices"):
        slots([f"cpu*{MAX_SLOTS}", "cpu"])
