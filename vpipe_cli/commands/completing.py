"""What the shell offers behind TAB: runs, sweeps, keys and their values; from local files only, and quickly."""

from __future__ import annotations

import os

MOST = 50


def runs(incomplete: str) -> list[str]:
    """Ids of runs, newest first. Folders are listed, not opened."""
    return _folders("runs", incomplete)


def sweeps(incomplete: str) -> list[str]:
    """Ids of sweeps."""
    return _folders("sweeps", incomplete)


def runs_and_sweeps(incomplete: str) -> list[str]:
    """Ids of both."""
    return [*runs(incomplete), *sweeps(incomplete)]


def settings(incomplete: str) -> list[str]:
    """Keys of cluster.yml with their ``=``; behind one, the words its value may be; and files that end in .yml."""
    from vpipe_cli import explain, overrides

    known = explain.names()
    name, equals, begun = incomplete.partition("=")
    if equals:
        key, _ = overrides.complete(name, known)
        done, comma, last = begun.rpartition(",")
        return [f"{name}={done}{comma}{word}" for word in explain.words(key) if word.startswith(last)] if key else []
    leaves = [key.rpartition(".")[2] for key in known]
    short = [leaf for leaf in leaves if leaves.count(leaf) == 1]
    files = [entry for entry in os.listdir() if entry.endswith((".yml", ".yaml"))]
    found = [*files, *(f"{key}=" for key in [*short, *known])]
    return [each for each in dict.fromkeys(found) if each.startswith(incomplete)]


def _folders(kind: str, incomplete: str) -> list[str]:
    from vpipe_cli.runs.store import home

    try:
        entries = sorted(os.scandir(home() / kind), key=_age)
    except OSError:
        return []
    return [entry.name for entry in entries if entry.name.startswith(incomplete)][:MOST]


def _age(entry: os.DirEntry[str]) -> float:
    try:
        return -entry.stat().st_mtime
    except OSError:
        return 0.0
