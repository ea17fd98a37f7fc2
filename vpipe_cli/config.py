"""cluster.yml and the command line's overrides -> ClusterSpec, or every mistake at once with file:line:column."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from vpipe_cli import overrides, yamltree
from vpipe_cli.check import check
from vpipe_cli.yamltree import Mistake, Node, Place
from worker.errors import ConfigError, Problem
from worker.spec.cluster import ClusterSpec

DEFAULT = "cluster.yml"
MAX_BYTES = 1_000_000
_MOST_PROBLEMS = 50


def load(path: str | Path, override: Sequence[str] = (), folder: Path | None = None) -> ClusterSpec:
    """The job a file describes, with stages, minibatches_per_step of bsp, and an absolute data.path filled in.

    Args:
        folder: where relative paths in the file begin; None: where the file is.
    Raises:
        ConfigError: with all mistakes, in the order of the file and then of ``override``.
    """
    root, mistakes = _tree(path)
    spec = None
    if root is not None:
        mistakes += overrides.apply(root, override)
        spec, found = check(root, folder or Path(path).parent)
        mistakes += found
    if spec is None or mistakes:
        raise ConfigError(_problems(mistakes))
    return spec


def values(path: str | Path | None, override: Sequence[str] = ()) -> dict[str, object]:
    """The values of a file, or of the command line alone, without a look at what they mean.

    Raises:
        ConfigError: with all mistakes of form.
    """
    at = Place((0, 0, 0), "command line")
    root, mistakes = _tree(path) if path is not None else (Node(at, at, {}), [])
    if root is not None:
        mistakes += overrides.apply(root, override)
    found = None if root is None else yamltree.plain(root)
    if mistakes or not isinstance(found, dict):
        raise ConfigError(_problems(mistakes))
    return found


def split(given: Sequence[str]) -> tuple[Path, list[str]]:
    """A command's arguments as the file and the overrides: one with an ``=`` is a file only if there is one."""
    if given and ("=" not in given[0] or os.path.isfile(given[0])):
        return Path(given[0]), list(given[1:])
    return Path(DEFAULT), list(given)


def read(path: str | Path) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: it is not there, not a file, larger than MAX_BYTES, or not UTF-8.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise _refusal(path, "is a folder; name the file in it" if stat.S_ISDIR(mode) else "is not a plain file")
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _refusal(path, "no such file; `vpipe init` writes a starter file") from None
    except (OSError, ValueError) as error:
        raise _refusal(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > MAX_BYTES:
        raise _refusal(path, f"is larger than {MAX_BYTES // 1_000_000} MB; a job is described in a few lines")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line, column = raw.count(b"\n", 0, error.start), error.start - raw.rfind(b"\n", 0, error.start) - 1
        place = _place(path, line, column)
        raise _refusal(place.text, f"is not UTF-8 text: byte 0x{raw[error.start]:02x}") from None


def _tree(path: str | Path) -> tuple[Node | None, list[Mistake]]:
    """The file's mapping of keys, or None and why there is none."""
    root, mistakes = yamltree.parse(read(path), lambda line, column: _place(path, line, column))
    if root is None and not mistakes:
        raise _refusal(path, "is empty; `vpipe init` writes a starter file")
    if root is None or isinstance(root.value, dict):
        return root, mistakes
    if not root.broken:
        kind = "a list" if isinstance(root.value, list) else "one value"
        mistakes.append(Mistake(root.place, "", f"must be `key: value` lines, one of them `machines:`, not {kind}"))
    return None, mistakes


def _place(path: str | Path, line: int, column: int) -> Place:
    return Place((0, line, column), f"{path}:{line + 1}:{column + 1}")


def _refusal(where: str | Path, message: str) -> ConfigError:
    return ConfigError([Problem(str(where), "", message)])


def _problems(mistakes: list[Mistake]) -> list[Problem]:
    """In the order of the file; a file with very many mistakes is cut short."""
    ordered = sorted(mistakes)
    problems = [Problem(mistake.place.text, mistake.key, mistake.message) for mistake in ordered[:_MOST_PROBLEMS]]
    if len(ordered) > _MOST_PROBLEMS:
        last = ordered[_MOST_PROBLEMS]
        problems.append(Problem(last.place.text, "", "more mistakes begin here; these are too many to list"))
    return problems
