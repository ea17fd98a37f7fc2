"""A secret that must come out nowhere: set it in the environment, run something, then look for it.

monkeypatch.setenv("MY_TOKEN", canary.SECRET)
...
assert canary.leaks(home, output) == []
"""

from __future__ import annotations

from pathlib import Path

SECRET = "canary-5f1d-d0-not-show"
MODE = 0o600


def leaks(folder: Path, *outputs: str) -> list[str]:
    """Everywhere it is seen: files that others may read and logs below ``folder``, command lines, outputs."""
    found = [f"file {path}" for path in in_files(folder)] + [f"argv of process {pid}" for pid in in_argv()]
    return found + [f"output {number}" for number, output in enumerate(outputs) if SECRET in output]


def in_files(folder: Path) -> list[Path]:
    """Files that hold it, unless only their owner may read them; logs, events and plans never may."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and SECRET.encode() in path.read_bytes():
            kept = path.stat().st_mode & 0o777 & ~MODE == 0
            if not kept or path.suffix in (".log", ".jsonl", ".stacks"):
                found.append(path)
    return found


def in_argv() -> list[int]:
    """Processes of this machine, hosts of a testbed included, that have it on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and SECRET.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # gone
            continue
    return found
