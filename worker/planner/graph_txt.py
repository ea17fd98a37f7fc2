"""PipeDream's graph.txt: layer profiles of a model as nodes and edges; read as a chain, written as one.

A line ``nodeN -- what it is -- forward_compute_time=ms, backward_compute_time=ms, activation_size=B, parameter_size=B``
for each node, then a line ``node1 -- node2`` for each edge (github.com/msr-fiddle/pipedream, profiler). The sizes are
of the node's output and of its parameters.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from worker.errors import UsageError
from worker.spec.profile import LayerProfile, Profile

_NODE = re.compile(r"node(\d+) -- (.*?) -- (\w+=.*?)(?: -- stage_id=\d+)?")
_EDGE = re.compile(r"node(\d+) -- node(\d+)")
NUMBERS = ("forward_compute_time", "backward_compute_time", "activation_size", "parameter_size")


@dataclass
class _Graph:
    nodes: dict[int, tuple[str, Mapping[str, float]]] = field(default_factory=dict)
    after: dict[int, list[int]] = field(default_factory=dict)
    before: dict[int, list[int]] = field(default_factory=dict)

    def remove(self, node: int) -> None:
        del self.nodes[node]
        for behind in self.after.pop(node, []):
            self.before[behind].remove(node)
        for ahead in self.before.pop(node, []):
            self.after[ahead].remove(node)


def looks_like(text: str) -> bool:
    """Whether a text is PipeDream's, and not JSON."""
    return text.lstrip().startswith("node")


def read(text: str, where: str) -> Profile:
    """The profile of a graph as a chain.

    Branches are reduced to their cut sets: nodes stand in topological order, by number where several could come next;
    what crosses a cut is the outputs of all nodes before it that a node behind it takes. As PipeDream's optimizer does,
    input nodes count nothing, for their time is that of loading data; results nobody takes (``__getitem__``) neither.

    Raises:
        UsageError: a line is not of the format, a number is missing, negative or not finite, an edge leads nowhere, or
            edges go round in a circle; names the line.
    """
    graph = _parse(text, where)
    for node in [
        node for node, (kind, _) in graph.nodes.items() if kind.startswith("Input") and not graph.before[node]
    ]:
        graph.remove(node)
    for node in [n for n, (kind, _) in graph.nodes.items() if kind.startswith("__getitem__") and not graph.after[n]]:
        graph.remove(node)
    if not graph.nodes:
        raise UsageError(f"{where}: has no node with a cost")
    order = _in_order(graph, where)
    return Profile(
        source="pipedream",
        layers=[_layer(graph, node, cut) for node, cut in zip(order, _cuts(graph, order), strict=True)],
    )


def write(profile: Profile) -> str:
    """The profile as a chain of nodes. The format has no place for links, recompute times or optimizer state."""
    nodes, edges = [], []
    for number, layer in enumerate(profile.layers, 1):
        size = layer.output_bytes if number < len(profile.layers) else layer.activation_bytes
        values = (1e3 * layer.forward, 1e3 * (layer.input_grad + layer.weight_grad), size, layer.parameter_bytes)
        costs = ", ".join(f"{key}={value:.6f}" for key, value in zip(NUMBERS, values, strict=True))
        nodes.append(f"node{number} -- {layer.name.replace(' -- ', ' ')} -- {costs}")
        if number > 1:
            edges.append(f"\tnode{number - 1} -- node{number}")
    return "\n".join([*nodes, *edges]) + "\n"


def _parse(text: str, where: str) -> _Graph:
    graph, edges = _Graph(), []
    for number, raw in enumerate(text.splitlines(), 1):
        line, place = raw.strip(), f"{where}:{number}"
        if not line:
            continue
        if edge := _EDGE.fullmatch(line):
            edges.append((int(edge[1]), int(edge[2]), place))
        elif node := _NODE.fullmatch(line):
            if int(node[1]) in graph.nodes:
                raise UsageError(f"{place}: node{node[1]} is there twice")
            graph.nodes[int(node[1])] = (node[2], _numbers(node[3], place))
            graph.after[int(node[1])], graph.before[int(node[1])] = [], []
        else:
            raise UsageError(f"{place}: {line[:60]!r} is neither a node nor an edge of PipeDream's format")
    for source, target, place in edges:
        for end in (source, target):
            if end not in graph.nodes:
                raise UsageError(f"{place}: there is no node{end}")
        graph.after[source].append(target)
        graph.before[target].append(source)
    return graph


def _numbers(text: str, place: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(", "):
        key, _, value = part.partition("=")
        try:
            # A node with several outputs has a list of sizes: [1.0; 2.0].
            found[key] = sum(float(each) for each in value.strip("[]").split(";"))
        except ValueError:
            raise UsageError(f"{place}: {key} is {value[:40]!r}, not a number") from None
    for key in NUMBERS:
        if key not in found:
            raise UsageError(f"{place}: {key} is missing")
        if not (math.isfinite(found[key]) and found[key] >= 0):
            raise UsageError(f"{place}: {key} is {found[key]}; it must be a number from 0 on")
    return found


def _in_order(graph: _Graph, where: str) -> list[int]:
    """Topological, the lowest number first of those that can come next."""
    missing = {node: len(set(before)) for node, before in graph.before.items()}
    ready = [node for node, count in missing.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        node = heapq.heappop(ready)
        order.append(node)
        for behind in set(graph.after[node]):
            missing[behind] -= 1
            if missing[behind] == 0:
                heapq.heappush(ready, behind)
    if len(order) < len(graph.nodes):
        stuck = min(node for node, count in missing.items() if count)
        raise UsageError(f"{where}: edges go round in a circle through or before node{stuck}")
    return order


def _cuts(graph: _Graph, order: Iterable[int]) -> list[int]:
    """Bytes that cross the cut behind each node of ``order``."""
    places = {node: place for place, node in enumerate(order)}
    changes = [0.0] * (len(places) + 1)
    for node, place in places.items():
        last = max((places[behind] for behind in graph.after[node]), default=place)
        size = graph.nodes[node][1]["activation_size"]
        changes[place] += size
        changes[last] -= size
    crossing, cuts = 0.0, []
    for change in changes[:-1]:
        crossing += change
        cuts.append(round(crossing))
    return cuts


def _layer(graph: _Graph, node: int, cut: int) -> LayerProfile:
    kind, costs = graph.nodes[node]
    backward = costs["backward_compute_time"] / 1e3
    size = round(costs["parameter_size"])
    return LayerProfile(
        name=f"node{node} {kind}",
        forward=costs["forward_compute_time"] / 1e3,
        input_grad=backward / 2,
        weight_grad=backward / 2,
        recompute=costs["forward_compute_time"] / 1e3,
        activation_bytes=round(costs["activation_size"]),
        output_bytes=cut,
        parameter_bytes=size,
        gradient_bytes=size,
        optimizer_bytes=0,
    )
