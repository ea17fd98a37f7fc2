"""Everything of a run that helps somebody else to understand it, in one file, without its secrets and its weights."""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from vpipe_cli import redact
from vpipe_cli.runs import state
from vpipe_cli.runs.store import Run
from worker import __version__
from worker.errors import UsageError

WHOLE = 1 << 20  # bytes of a file that is taken as it is
END = 64 << 10  # and of the end of a file that is longer, or of a log
TAKEN = [
    *("*.json", "*.yml", "*.jsonl", "*.log", "metrics/*.jsonl", "checkpoints/*/manifest.json"),
    *(f"attempt-*/*.{kind}" for kind in ("json", "log", "progress", "stacks")),
]
PACKAGES = ("vpipe", "torch", "numpy", "pydantic", "typer", "rich", "paramiko", "spython", "tokenizers", "safetensors")
NOT_TAKEN = """\
Left out: weights and optimizer state (of checkpoints only their manifests), data and caches, the code of your model,
images, traces, pictures; of every log and long file all but the last 64 KiB.
Redacted: values under names like token, secret, password, api_key, in files and in what ranks printed; passwords in
URLs, private keys; and the values of such variables of the environment this was made in. Not redacted, because nobody
can know them: secrets that your code printed under other names; paths, user names, host names. Look before you send it.
"""


def write(run: Run, to: Path, environ: Mapping[str, str]) -> list[str]:
    """Write the dump of a run to ``to`` (mode 0600); the names in it.

    Args:
        environ: whose secrets are taken out wherever they stand.
    Raises:
        UsageError: the file is there already, or cannot be written.
    """
    known = redact.secrets_of(environ)
    pieces = {"status.json": json.dumps(state.status(run), indent=1), "versions.json": json.dumps(versions(), indent=1)}
    pieces |= dict(_files(run.folder))
    pieces["files.txt"] = _listing(run.folder)
    pieces["README.txt"] = f"vpipe {__version__}, run {run.id}\n\n{NOT_TAKEN}"
    try:
        descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in sorted(pieces.items()):
                _add(archive, f"{run.id}/{name}", _clean(name, content, known))
    except OSError as error:
        raise UsageError(f"cannot write {to}: {error.strerror}", "--to names another file") from error
    return sorted(pieces)


def versions() -> dict[str, object]:
    """Of everything that may matter, on this machine."""
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {"python": sys.version, "platform": platform.platform(), "packages": found, "cores": os.cpu_count()}


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted({path for pattern in TAKEN for path in folder.glob(pattern)}):
        with suppress(OSError):
            name = str(path.relative_to(folder))
            yield name, _read(path, END if path.suffix in (".log", ".stacks") else WHOLE)


def _read(path: Path, limit: int) -> str:
    """A file, or the whole lines at the end of one that is longer than ``limit`` bytes. Links are not followed."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= limit:
            return file.read(limit).decode(errors="replace")
        file.seek(size - END)
        rest = file.read(END).partition(b"\n")[2]
        return f"[{size - len(rest)} bytes before this are left out]\n" + rest.decode(errors="replace")


def _listing(folder: Path) -> str:
    """Every file of the run with its size and mode, those that are left out too."""
    lines = []
    for path in sorted(folder.rglob("*")):
        with suppress(OSError):
            status = path.lstat()
            lines.append(f"{status.st_mode & 0o7777:04o} {status.st_size:>12} {path.relative_to(folder)}")
    return "\n".join(lines) + "\n"


def _clean(name: str, content: str, known: list[str]) -> str:
    """Structured where it is JSON, so that a secret's name and its value are never taken apart."""
    if name.endswith(".json"):
        with suppress(ValueError):
            return json.dumps(redact.document(json.loads(content), known), indent=1) + "\n"
    return redact.text(content, known)


def _add(archive: tarfile.TarFile, name: str, content: str) -> None:
    data = content.encode(errors="replace")
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o600
    archive.addfile(entry, io.BytesIO(data))
