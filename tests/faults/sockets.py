"""Which sockets the processes of a run listen on, as the kernel says."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LISTENS = "0A"
ANY = {"00000000", "0" * 32}


def wildcards(pids: Iterable[int]) -> list[str]:
    """``pid:port`` of every socket that takes connections from everywhere."""
    return [f"{pid}:{port}" for pid, address, port in listeners(pids) if address in ANY]


def listeners(pids: Iterable[int]) -> list[tuple[int, str, int]]:
    """Process, address (hexadecimal) and port of every listening TCP socket of these processes."""
    found = []
    for pid in pids:
        inodes = _inodes(pid)
        for name in ("tcp", "tcp6"):
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                    fields = line.split()
                    if fields[3] == LISTENS and fields[9] in inodes:
                        address, _, port = fields[1].partition(":")
                        found.append((pid, address, int(port, 16)))
    return found


def _inodes(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = os.readlink(entry)
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found
