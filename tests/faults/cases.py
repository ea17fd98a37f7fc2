"""All cases, in the order of the table."""

from __future__ import annotations

import importlib


def load() -> None:
    """Let every file of cases put its own into the battery."""
    for name in ("ranks", "saves", "jobs", "strings", "hosts"):
        importlib.import_module(f"tests.faults.{name}")
