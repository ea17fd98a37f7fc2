"""machines -> slots in rank order, or what is wrong with which of them."""

from __future__ import annotations

import pytest

from vpipe_cli.machines import MAX_SLOTS, Slot, hosts, is_local, read, slots
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
        (["localhost:cpu*2"], "cpu cpu"),
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
        ("gpu1", "'gpu1' names no device; write"),
        ("gpu[1-2]", "names no device"),
        ("gpu[2-1]:0", "counts down; write 1-2"),
        ("gpu[a]:0", "'a' in 'gpu[a]:0' is not a number"),
        ("gpu[]:0", "'' in 'gpu[]:0' is not a number"),
        ("gpu[1-2:0", "cannot be a machine"),
        ("gpu[1-2000]:0", "a job has 1 to"),
        ("gpu[1-40]:0-39", "a job has 1 to"),
        ("gpu[1-9]" * 9 + ":0", "a job has 1 to"),
        ("gpu1:cpu*0", "asks for 0 devices"),
        ("ana@gpu1:0", "belongs to the section `ssh`"),
        ("-oProxyCommand=x:0", "'-oProxyCommand=x' in '-oProxyCommand=x:0' cannot be a machine"),
        ("a;b:0", "cannot be a machine"),
        ("a b:0", "cannot be a machine"),
        ("$(id):0", "cannot be a machine"),
        ("", "cannot be a machine"),
        ("\x1b[31m", "'\\x1b[31m' in '\\x1b[31m' cannot be a machine"),
    ],
)
def test_what_cannot_be_used_says_why(machine: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        slots([machine])
    assert words in caught.value.message


@pytest.mark.parametrize(
    "machines, expected",
    [
        (["gpu[01-03]:0"], "gpu01/cuda:0 gpu02/cuda:0 gpu03/cuda:0"),
        (["gpu[8-10]:0"], "gpu8/cuda:0 gpu9/cuda:0 gpu10/cuda:0"),
        (["gpu[1-2,5]:0,1"], "gpu1/cuda:0 gpu1/cuda:1 gpu2/cuda:0 gpu2/cuda:1 gpu5/cuda:0 gpu5/cuda:1"),
        (["r[1-2]n[1-2].lab:3"], "r1n1.lab/cuda:3 r1n2.lab/cuda:3 r2n1.lab/cuda:3 r2n2.lab/cuda:3"),
        (["b:cpu*2", "cpu", "a:cpu"], "b/cpu b/cpu localhost/cpu a/cpu"),
        (["cpu-node:0"], "cpu-node/cuda:0"),
    ],
)
def test_machines_by_their_names(machines: list[str], expected: str) -> None:
    assert " ".join(f"{slot.host}/{slot.device}" for slot in slots(machines)) == expected


def test_the_engine_follows_from_the_machines() -> None:
    assert is_local(slots(["cpu*2", "localhost:0"])) and not is_local(slots(["cpu", "a:cpu"]))
    assert hosts(slots(["b:0", "cpu", "a:0", "b:1"])) == ["b", "localhost", "a"]


def test_every_wrong_machine_is_told_apart_from_the_right_ones() -> None:
    found, wrong = read(["cpu", "gpu1", "localhost:0", "localhost:0,1", "cpu"])
    assert found == [Slot("localhost", "cpu"), Slot("localhost", "cuda:0"), Slot("localhost", "cpu")]
    assert list(wrong) == [1, 3]


def test_all_machines_together_are_bounded() -> None:
    assert len(slots([f"cpu*{MAX_SLOTS - 1}", "cpu"])) == MAX_SLOTS
    with pytest.raises(UsageError, match=r"machines\[1\]: 'machines' asks for 1025 devices"):
        slots([f"cpu*{MAX_SLOTS}", "cpu"])
