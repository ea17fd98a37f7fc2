"""``optimizer.lr=1e-4`` and shorter: values from the command line, put into the tree of cluster.yml."""

from __future__ import annotations

from collections.abc import Sequence

from vpipe_cli import explain, yamltree
from vpipe_cli.yamltree import Mistake, Node, Place

_LONGEST_SHOWN = 60


def apply(root: Node, overrides: Sequence[str]) -> list[Mistake]:
    """Set values of ``root`` from ``key=value`` texts, later ones over earlier ones; the mistakes in them."""
    known = explain.names()
    mistakes: list[Mistake] = []
    for number, text in enumerate(overrides, start=1):
        mistakes += _apply(root, text, number, known)
    return mistakes


def complete(key: str, known: Sequence[str]) -> tuple[str, str]:
    """The one known dotted path that is ``key`` or ends in it, or else "" and what to say instead."""
    if key in known:
        return key, ""
    found = [name for name in known if name.endswith(f".{key}")]
    found = [name for name in found if not name.startswith("slurm.")] or found  # the job comes before its queue
    if len(found) == 1:
        return found[0], ""
    if found:
        return "", f"is short for {' and for '.join(f'`{name}`' for name in found)}; write one of them"
    return "", "unknown key" + explain.suggest(key, known)


def _apply(root: Node, text: str, number: int, known: Sequence[str]) -> list[Mistake]:
    short = text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
    shown = short if short.isprintable() else repr(short)

    def at(line: int, column: int) -> Place:
        return Place((number, line, column), f"command line: {shown}")

    key, equals, value = text.partition("=")
    if not equals:
        return [Mistake(at(0, 0), "", "must be key=value")]
    name, message = complete(key.strip(), known)
    if not name:
        return [Mistake(at(0, 0), yamltree.label(key), message)]
    node, mistakes = yamltree.parse(value, at)
    if node is None and not mistakes:
        return [Mistake(at(0, 0), name, "has no value after `=`")]
    _put(root, name.split("."), node or Node(at(0, 0), at(0, 0), None, broken=True))
    return [Mistake(mistake.place, name, mistake.message) for mistake in mistakes]


def _put(root: Node, path: list[str], node: Node) -> None:
    """Set the value at ``path``, with the sections on the way; a section that is something else stays to be refused."""
    section = root
    for part in path[:-1]:
        if not isinstance(section.value, dict):
            return
        section = section.value.setdefault(part, Node(node.place, node.place, {}))
    if isinstance(section.value, dict):
        section.value[path[-1]] = node
