"""What keeps attempts apart and terminals safe, taken away once: each is missed at once, so nobody loses it unseen.

What a checkpoint holds is left out piece by piece in test_resume.py, the fsync of folders in test_crash_points.py.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from vpipe_cli import sanitize
from vpipe_cli.render import logs as rendered
from vpipe_cli.runs import merge
from vpipe_cli.runs.logs import Record, Source
from worker import rendezvous
from worker.hostd.link import nonce_of
from worker.rendezvous import Rendezvous


def hears_an_old_attempt(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether what a rank of attempt 1 says at attempt 2's store reaches attempt 2."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("VPIPE_STORE", f"127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("VPIPE_STORE_FD", str(listener.detach()))  # torch closes it
    monkeypatch.setenv("VPIPE_NONCE", nonce_of("secret", 2))
    new = Rendezvous.from_environment(0, 2, 30.0)
    monkeypatch.setenv("VPIPE_NONCE", nonce_of("secret", 1))
    old = Rendezvous.from_environment(1, 2, 30.0)
    old.give("readiness", "ready")
    return bool(new.store.check(["readiness/1"]))


def no_nonce(nonce: str, store: Any) -> Any:
    return store


@pytest.mark.parametrize("nonce", [True, False])
def test_only_the_nonce_keeps_a_rank_of_an_old_attempt_out(nonce: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not nonce:
        monkeypatch.setattr(rendezvous, "PrefixStore", no_nonce)
    assert hears_an_old_attempt(monkeypatch) != nonce


@pytest.mark.parametrize("cleaned", [True, False])
def test_only_the_sanitizer_keeps_a_log_from_commanding_the_terminal(
    cleaned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cleaned:
        monkeypatch.setattr(rendered, "clean", lambda text: text if isinstance(text, str) else sanitize.decode(text))
        monkeypatch.setattr(rendered, "shown_all", lambda data: [sanitize.decode(data)])
    source = Source(0, 0, "a", Path("rank-0.log"))
    stamp = b"2026-11-23T12:49:01.500000Z e "
    evil = b"a\x1b]52;c;ZXZpbA==\x07b\x1b[2J"
    record = Record(stamp.decode().split()[0], source, "stderr", evil)
    (lines,) = merge.last([[stamp + evil]], 1, rendered.Lines([source], "text"))
    for text in (rendered.line(record, "").plain, rendered.formatter([source])(record), lines):
        assert ("\x1b" not in text) == cleaned
