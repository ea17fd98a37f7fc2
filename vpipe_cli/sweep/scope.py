"""What a name in ``--where`` stands for: the value of a swept key at this point, or what cluster.yml says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpipe_cli import config, explain, overrides, yamltree
from vpipe_cli.sweep.grammar import Axis
from vpipe_cli.sweep.grid import Point
from vpipe_cli.sweep.where import Where, lookup
from vpipe_cli.yamltree import Place
from worker.errors import ConfigError, UsageError


class Scope:
    """Says of every point whether the condition holds there.

    Raises UsageError if the condition names a key that there is not, or whose value is not known.
    """

    def __init__(
        self, path: Path, folder: Path, base: Sequence[str], axes: Sequence[Axis], where: Where | None
    ) -> None:
        self._where = where
        self._at: dict[str, int] = {}
        self._fixed: dict[str, Any] = {}
        rest = set()
        for name in where.names if where else ():
            key = self._complete(name, axes)
            index = next((index for index, axis in enumerate(axes) if axis.key == key), None)
            if index is None:
                rest.add((name, key))
            else:
                self._at[name] = index
        if rest:
            self._fixed = self._said(path, folder, base, rest)

    def holds(self, point: Point) -> bool:
        """Whether this point is meant."""
        if self._where is None:
            return True
        values = {name: value(point[index]) for name, index in self._at.items()} | self._fixed
        return self._where(values.__getitem__)

    def _complete(self, name: str, axes: Sequence[Axis]) -> str:
        """The key: a swept one first, else any that cluster.yml has."""
        key, message = overrides.complete(name, [axis.key for axis in axes])
        if not key:
            key, message = overrides.complete(name, explain.names())
        if not key:
            raise UsageError(f"--where: `{name}` {message}")
        return key

    def _said(self, path: Path, folder: Path, base: Sequence[str], rest: set[tuple[str, str]]) -> dict[str, Any]:
        try:
            values = config.load(path, base, folder).model_dump(mode="json")
        except ConfigError:  # of one that is only right with the swept values
            raise UsageError(
                "--where names keys that are not swept, but cluster.yml alone is no whole job",
                f"leave out {', '.join(sorted(name for name, _ in rest))}",
            ) from None
        found = {}
        for name, key in rest:
            try:
                found[name] = lookup(values, key)
            except KeyError:
                raise UsageError(f"--where: `{key}` has no value in this job") from None
        return found


def value(text: str) -> Any:
    """What YAML text of a point means; the text itself where it is no YAML, which the schema then says."""
    node, mistakes = yamltree.parse(text, lambda line, column: Place((0, line, column), ""))
    return text if mistakes or node is None else yamltree.plain(node)
