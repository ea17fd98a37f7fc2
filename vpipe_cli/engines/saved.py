"""Checkpoints on other hosts: brought here, whatever host has which part, and sent to where a new run begins.

What is brought is verified like any other before it gets its name; what is sent, the ranks verify.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vpipe_cli.transport.base import Transport
from worker.checkpoint import layout, manifest, verify
from worker.checkpoint.manifest import FileEntry, Manifest
from worker.errors import CheckpointError
from worker.spec.files import RunFiles

QUIET_LIMIT = 60.0  # seconds without a byte until a host is given up


def send(files: RunFiles, hosts: Mapping[str, Transport], folders: Mapping[str, str]) -> None:
    """Give every host the checkpoints that a run on this machine begins with.

    Args:
        folders: the run's folder on each host.
    Raises:
        TransferError, UnreachableError: a host could not take them.
    """

    def give(host: str) -> None:
        for step in layout.steps(files.checkpoints):
            path = layout.committed(files.checkpoints, step)
            for name in sorted(os.listdir(path), key=lambda name: name == layout.MANIFEST):  # the manifest last
                target = f"{folders[host]}/{files.checkpoints.name}/{path.name}/{name}"
                hosts[host].put(path / name, target, timeout=QUIET_LIMIT)

    with ThreadPoolExecutor(max(1, min(32, len(hosts)))) as pool:
        list(pool.map(give, hosts))


def fetch(files: RunFiles, hosts: Mapping[str, Transport], folders: Mapping[str, str], step: int | None) -> int:
    """Bring the checkpoint of ``step`` here, or the newest that every host has; its step.

    Raises:
        CheckpointError: there is none, or what came is damaged.
        UnreachableError: a host stopped answering.
    """
    there = {host: _steps(hosts[host], f"{folders[host]}/{files.checkpoints.name}") for host in hosts}
    common = set.intersection(*there.values()) if there else set()
    if not common or (step is not None and step not in common):
        listed = "; ".join(f"{host} has {sorted(found) or 'none'}" for host, found in there.items())
        what = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise CheckpointError(f"run {files.folder.name} has no {what} on all of its hosts: {listed}")
    chosen = max(common) if step is None else step
    target = layout.committed(files.checkpoints, chosen)
    if not target.exists():
        _bring(target, hosts, {host: f"{folders[host]}/{files.checkpoints.name}/{target.name}" for host in hosts})
    return chosen


def _bring(target: Path, hosts: Mapping[str, Transport], folders: Mapping[str, str]) -> None:
    aside = target.with_name(f"{target.name}.tmp-0")
    shutil.rmtree(aside, ignore_errors=True)
    for folder in (target.parent.parent, target.parent, aside):  # what `parents` makes has the umask's mode
        folder.mkdir(mode=0o700, exist_ok=True)
    first = next(iter(hosts))
    _copy(hosts[first], f"{folders[first]}/{layout.MANIFEST}", aside / layout.MANIFEST)
    found = manifest.read(aside)
    wrong = []
    for name in found.files:
        likely = _likely(found, name, list(hosts))
        problems = []
        for host in likely:
            if not (problem := _brought(hosts[host], f"{folders[host]}/{name}", aside / name, found.files[name])):
                break
            problems.append(((aside / name).stat().st_size, problem))
        else:
            wrong.append(max(problems)[1])  # of those who had nothing, it says nothing
    if wrong:
        shutil.rmtree(aside)
        raise CheckpointError(f"what the hosts have of {target.name} is damaged: {'; '.join(wrong)}")
    for path in (aside, target.parent):
        layout.fsync_folder(path)
    aside.rename(target)


def _brought(host: Transport, source: str, target: Path, entry: FileEntry) -> str:
    """Copy a file of a checkpoint; what is wrong with what came, if anything."""
    _copy(host, source, target)
    try:
        verify.check(target.parent, target.name, entry)
    except CheckpointError as error:
        return error.message
    return ""


def _likely(found: Manifest, name: str, hosts: list[str]) -> list[str]:
    """The hosts to ask for a file, the one whose rank wrote it first; others may have a copy, or the same storage."""
    writer = found.ranks[str(found.files[name].rank)].host
    return sorted(hosts, key=lambda host: host != writer)


def _steps(host: Transport, folder: str) -> set[int]:
    said = host.run(["ls", "-1", folder], timeout=QUIET_LIMIT).stdout.decode(errors="replace")
    return {int(match[1]) for line in said.splitlines() if (match := re.fullmatch(r"step-(\d{1,18})", line))}


def _copy(host: Transport, source: str, target: Path) -> None:
    """A file's bytes, as many as come; nothing where there is none."""
    channel = host.open(["cat", "--", source], timeout=QUIET_LIMIT)
    try:
        with open(target, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            while data := channel.read(QUIET_LIMIT):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
    finally:
        channel.close()
