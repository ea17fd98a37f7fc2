"""A head that ends while its run is looked at: what it said last is heard before it counts as gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import runs
from vpipe_cli.engines.mirror import Mirror
from worker.spec.files import RunFiles, read_events, seal


def test_the_final_word_of_a_head_that_has_just_ended_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was written after the events were read and before the head was asked whether it lives."""
    files = RunFiles(tmp_path)
    runs.state(files, "running")
    size = files.events.stat().st_size
    final = seal({"time": runs.BEGIN, "event": "state", "attempt": 1, "state": "failed"}).encode()
    looks: list[list[tuple[int, bytes]]] = [[], [(size, final)]]
    mirror = Mirror(files, {"head": "there"}, {"head": []}, lambda hosts: ({}, {}))

    def attempt(host: str, action: Any) -> Any:
        if action == mirror._events:
            return looks.pop(0)
        mirror._lives[host] = False
        return None

    monkeypatch.setattr(mirror, "_reach", lambda: None)
    monkeypatch.setattr(mirror, "_attempt", attempt)
    mirror._servers["head"] = None  # type: ignore[assignment]
    mirror._pass()
    assert [event["state"] for event in read_events(files.events)] == ["running", "failed"]
    assert mirror.alive == {"head": False} and looks == []
