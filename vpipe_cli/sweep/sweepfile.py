"""`-f sweep.yml`: a sweep's keys, values and options in a file.

parameters: {recompute_ratio: [0, 0.5, 1], partition: [[4, 6], [5, 5]]}
where: recompute_ratio < 1
steps: 50
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpipe_cli import config, yamltree
from vpipe_cli.explain import suggest
from vpipe_cli.yamltree import Node, Place
from worker.errors import ConfigError, Problem

KINDS: dict[str, tuple[type, str]] = {
    "zip": (bool, "true or false"), "where": (str, "a condition as text"), "repeat": (int, "a whole number"),
    "steps": (int, "a whole number"), "parallel": (int, "a whole number"), "fail_fast": (bool, "true or false"),
}  # fmt: skip


@dataclass(frozen=True)
class SweepFile:
    """What a file says. ``texts`` are its parameters as they would be typed: ``KEY=V1,V2``."""

    texts: list[str] = field(default_factory=list)
    zip: bool = False
    where: str | None = None
    repeat: int = 1
    steps: int | None = None
    parallel: int = 1
    fail_fast: bool = False


def read(path: Path) -> SweepFile:
    """Read a sweep.yml. Raises ConfigError with every mistake and its place."""
    root, mistakes = yamltree.parse(
        config.read(path), lambda line, column: Place((0, line, column), f"{path}:{line + 1}:{column + 1}")
    )
    problems = [Problem(mistake.place.text, mistake.key, mistake.message) for mistake in sorted(mistakes)]
    found: dict[str, Any] = {}
    texts: list[str] = []
    if root is None or not isinstance(root.value, dict):
        problems = problems or [Problem(str(path), "", "must be `parameters:` with keys and lists of values")]
    else:
        for key, node in root.value.items():
            if node.broken:
                continue
            if key == "parameters":
                texts = _parameters(node, problems)
            elif message := _wrong(key, node):
                place = node.place if key in KINDS else node.key_place
                problems.append(Problem(place.text, yamltree.label(key), message))
            else:
                found[key] = node.value
    if problems:
        raise ConfigError(problems)
    return SweepFile(texts=texts, **found)


def _wrong(key: str, node: Node) -> str:
    if key not in KINDS:
        return "unknown key" + suggest(key, ["parameters", *KINDS])
    kind, described = KINDS[key]
    if type(node.value) is not kind:
        return f"must be {described}, not {node.text or 'a group'}"
    return "must be at least 1" if kind is int and int(str(node.value)) < 1 else ""


def _parameters(node: Node, problems: list[Problem]) -> list[str]:
    if not isinstance(node.value, dict):
        problems.append(Problem(node.place.text, "parameters", "must be keys, each with a list of values"))
        return []
    texts = []
    for key, values in node.value.items():
        items = values.value if isinstance(values.value, list) else [values]
        texts.append(f"{key}={','.join(_text(item) for item in items)}")
        if not items:
            problems.append(Problem(values.place.text, yamltree.label(key), "has no value, so the grid is empty"))
    return texts


def _text(node: Node) -> str:
    """A value as it would be typed; a range(...) stays one."""
    if isinstance(node.value, str) and node.value.startswith("range("):
        return node.value
    return node.text if isinstance(node.value, int | float) else _flow(yamltree.plain(node))


def _flow(value: object) -> str:
    return yamltree.dump([value]).strip()[1:-1]
