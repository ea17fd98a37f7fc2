"""Profiles as files: what is refused and where, and PipeDream's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from worker.errors import UsageError
from worker.planner import graph_txt
from worker.spec.planner import rate, size
from worker.spec.profile import Profile, from_json

SIZES = ("activation_bytes", "output_bytes", "parameter_bytes", "gradient_bytes", "optimizer_bytes")
LAYER = {"name": "a", "forward": 1, "input_grad": 1, "weight_grad": 1, "recompute": 1, **dict.fromkeys(SIZES, 4)}
NODE = "forward_compute_time=1.0, backward_compute_time=2.0, activation_size=8.0, parameter_size=4.0"


def profile_with(**changed: Any) -> str:
    return json.dumps({"schema": 1, "layers": [LAYER, {**LAYER, **changed}]})


def test_a_profile_is_read_back_as_it_was_written() -> None:
    profile = from_json(profile_with(), "p.json")
    assert from_json(profile.to_json(), "p.json") == profile


@pytest.mark.parametrize(
    "text, place",
    [
        (profile_with(forward=-1), "p.json: layers[1].forward: "),
        (profile_with(forward=float("nan")), "p.json: layers[1].forward: Input should be a finite number"),
        (profile_with(forward="1"), "p.json: layers[1].forward: "),
        (profile_with(output_bytes=1.5), "p.json: layers[1].output_bytes: "),
        (profile_with(extra=1), "p.json: layers[1].extra: "),
        (json.dumps({"layers": [{"name": "a"}]}), "p.json: layers[0].forward: Field required"),
        (json.dumps({"layers": []}), "p.json: layers: "),
        ("{", "p.json: Invalid JSON"),
        (profile_with().replace('"schema": 1', '"schema": 9'), "p.json: schema is 9"),
    ],
)
def test_a_wrong_profile_is_refused_with_its_place(text: str, place: str) -> None:
    with pytest.raises(UsageError) as raised:
        from_json(text, "p.json")
    assert raised.value.message.startswith(place) and raised.value.exit_code == 2


def nodes(*numbers: int) -> str:
    return "".join(f"node{number} -- Linear(1) -- {NODE}\n" for number in numbers)


def test_branches_are_reduced_to_their_cut_sets() -> None:
    """1 feeds 2 and 3, which meet in 4: behind 1 one tensor crosses, behind 2 those of 1 and of 2."""
    graph = nodes(1, 2, 3, 4) + "\tnode1 -- node2\n\tnode1 -- node3\n\tnode2 -- node4\n\tnode3 -- node4\n"
    profile = graph_txt.read(graph, "g.txt")
    assert [layer.output_bytes for layer in profile.layers] == [8, 16, 16, 0]
    assert [layer.seconds for layer in profile.layers] == pytest.approx([0.003] * 4)


def test_inputs_and_unused_items_are_left_out() -> None:
    graph = f"node0 -- Input0 -- {NODE}\nnode5 -- __getitem__(0) -- {NODE}\n" + nodes(1)
    profile = graph_txt.read(graph + "\tnode0 -- node1\n\tnode1 -- node5\n", "g.txt")
    assert [layer.name for layer in profile.layers] == ["node1 Linear(1)"]


def test_a_chain_is_read_back_as_it_was_written() -> None:
    profile = graph_txt.read(nodes(2, 1) + "\tnode2 -- node1\n", "g.txt")
    again = graph_txt.read(graph_txt.write(profile), "g.txt")
    assert [layer.model_dump(exclude={"name"}) for layer in again.layers] == [
        layer.model_dump(exclude={"name"}) for layer in profile.layers
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("node1 -- x -- forward_compute_time=1.0", "g.txt:1: backward_compute_time is missing"),
        (nodes(1).replace("1.0", "nan"), "g.txt:1: forward_compute_time is nan"),
        (nodes(1).replace("=2.0", "=-2.0"), "g.txt:1: backward_compute_time is -2.0"),
        (nodes(1).replace("8.0", "many"), "g.txt:1: activation_size is 'many', not a number"),
        (nodes(1) + "\tnode1 -- node7\n", "g.txt:2: there is no node7"),
        (nodes(1, 1), "g.txt:2: node1 is there twice"),
        (nodes(1, 2) + "\tnode1 -- node2\n\tnode2 -- node1\n", "g.txt: edges go round in a circle"),
        (nodes(1) + "what is this\n", "g.txt:2: 'what is this' is neither a node nor an edge"),
    ],
)
def test_a_wrong_graph_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        graph_txt.read(text, "g.txt")
    assert raised.value.message.startswith(message)


def test_sizes() -> None:
    assert [size("16GiB"), size("1.5 MB"), size("12"), size(7), rate("1GB/s")] == [2**34, 1_500_000, 12, 7, 1e9]
    for wrong in ("", "0", "many", "1XB", "-1GB"):
        with pytest.raises(UsageError, match="is not a size"):
            size(wrong)


def test_a_profile_keeps_nothing_it_does_not_know(tmp_path: Path) -> None:
    assert Profile.model_json_schema()["additionalProperties"] is False
