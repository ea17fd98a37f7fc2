"""The code of a job as a value: vpipe's worker, or a user's folder, named by its content; shipped where it is not."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vpipe_cli.onhost.send import ask
from vpipe_cli.transport.base import Transport
from worker import errors
from worker.errors import TransferError, UsageError, VpipeError

MOST = 20 << 20
"""Bytes of a user's folder that travel at each launch; data and checkpoints are bound in instead."""
LEFT_OUT = frozenset({"__pycache__", "node_modules", "venv"})
SECONDS = 120.0


@dataclass(frozen=True)
class Member:
    """One file: where it lies in the bundle, with ``/``."""

    name: str
    executable: bool
    content: bytes


@dataclass(frozen=True)
class Bundle:
    """Files that become one folder, ``<root>/code/<digest>/``, on every machine."""

    members: tuple[Member, ...]

    @property
    def digest(self) -> str:
        """sha256 over every file's name, whether it is executable, its length and its content, in order of names."""
        taken = hashlib.sha256()
        for member in self.members:
            head = json.dumps([member.name, member.executable, len(member.content)])
            taken.update(head.encode() + b"\n" + member.content)
        return taken.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(len(member.content) for member in self.members)


def worker_bundle() -> Bundle:
    """vpipe's worker package: what ``python -m worker`` needs, as it is on this machine."""
    folder = Path(errors.__file__).parent
    return Bundle(tuple(sorted(_read(folder, "worker"), key=lambda member: member.name)))


def folder_bundle(folder: Path, most: int = MOST) -> Bundle:
    """A user's folder. Hidden files, caches and virtual environments stay behind.

    Raises:
        UsageError: a link leads out of it, or it holds more than ``most`` bytes.
    """
    return Bundle(tuple(sorted(_read(folder.resolve(), "", most), key=lambda member: member.name)))


def ship_code(hosts: Mapping[str, Transport], bundle: Bundle) -> dict[str, str]:
    """Bring a bundle to every host that lacks it; its folder on each.

    Raises:
        TransferError: a machine could not take it; all that could not are named.
        UnreachableError: as the transport has it.
    """
    with ThreadPoolExecutor(max(1, min(32, len(hosts)))) as pool:
        done = {host: pool.submit(_bring, transport, bundle) for host, transport in hosts.items()}
    return gather({host: future.exception() or future.result() for host, future in done.items()})


def gather(results: Mapping[str, str | BaseException]) -> dict[str, str]:
    """The results by host. Raises the first failure, with what the others failed of in its message."""
    failed = {host: result for host, result in results.items() if isinstance(result, BaseException)}
    if not failed:
        return {host: str(result) for host, result in results.items()}
    first, *others = failed.values()
    if isinstance(first, VpipeError) and others:
        raise type(first)("\n".join(getattr(each, "message", str(each)) for each in [first, *others]), first.hint)
    raise first


def _bring(transport: Transport, bundle: Bundle) -> str:
    answer = ask(transport, "code", {"do": "has", "digest": bundle.digest}, timeout=SECONDS)
    if not answer.get("here"):
        files = [[each.name, each.executable, base64.b64encode(each.content).decode()] for each in bundle.members]
        request = {"do": "unpack", "digest": bundle.digest, "files": files}
        answer = ask(transport, "code", request, timeout=SECONDS)
    if "error" in answer:
        raise TransferError(f"{transport.host}: the code could not be written: {answer['error']}", ROOM)
    return str(answer["path"])


ROOM = "VPIPE_HOME, set on that machine, names another place; `vpipe image prune` makes room"


def _read(folder: Path, prefix: str, most: int = MOST) -> Iterator[Member]:
    total = 0
    for path in _files(folder):
        if path.is_symlink() and not path.resolve().is_relative_to(folder):
            raise UsageError(
                f"{path} is a link that leads out of {folder}", "copy the file there, or bind its folder in"
            )
        content = path.read_bytes()
        total += len(content)
        if total > most:
            raise UsageError(
                f"{folder} holds more than {most >> 20} MB of files; the largest: {_largest(folder)}",
                "keep data elsewhere and name it in `container.binds`",
            )
        name = "/".join([*filter(None, [prefix]), *path.relative_to(folder).parts])
        yield Member(name, os.access(path, os.X_OK), content)


def _files(folder: Path) -> Iterator[Path]:
    for top, folders, names in os.walk(folder):
        here = Path(top)
        folders[:] = sorted(name for name in folders if not _stays(here / name))
        yield from (here / name for name in sorted(names) if _travels(here / name))
        links = [here / name for name in folders if (here / name).is_symlink()]
        yield from _refused(links, folder)


def _refused(links: Iterable[Path], folder: Path) -> Iterator[Path]:
    for link in links:
        raise UsageError(f"{link} is a link to a folder, which cannot travel", f"copy the folder into {folder}")
    yield from ()


def _stays(path: Path) -> bool:
    return path.name.startswith(".") or path.name in LEFT_OUT or (path / "pyvenv.cfg").exists()


def _travels(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix not in (".pyc", ".pyo") and path.is_file()


def _largest(folder: Path) -> str:
    sizes = sorted(((path.stat().st_size, path) for path in _files(folder)), reverse=True)[:3]
    return ", ".join(f"{path.relative_to(folder)} ({size >> 20} MB)" for size, path in sizes)
