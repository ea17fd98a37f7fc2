"""How the ranks agree on a checkpoint: reports to rank 0, one manifest back, a rename in every place.

It goes through the attempt's store, so that a rank of an older attempt can take part in nothing. JSON only. The store
is asked, never waited for: a wait would keep the training thread from it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]

from worker.checkpoint import layout, manifest
from worker.checkpoint.manifest import FileEntry, Manifest, ParameterEntry, RankEntry
from worker.errors import CheckpointError, PeerLost, RankError
from worker.recovery import copies
from worker.recovery.place import Place
from worker.recovery.snapshot import Snapshot
from worker.spec.checkpoint import CheckpointSpec

POLL = 0.01


@dataclass(frozen=True)
class Report:
    """What a rank says of its part, as JSON."""

    text: str

    @classmethod
    def of(cls, snapshot: Snapshot, files: Mapping[str, FileEntry]) -> Report:
        """That it is on the disk."""
        body = {
            "files": {name: entry.model_dump() for name, entry in files.items()},
            "layers": snapshot.layers,
            "parameters": snapshot.parameters,
            "values": snapshot.values,
            "sums": snapshot.sums,
            "scaler": snapshot.scaler,
            "has_older": snapshot.has_older,
        }
        return cls(json.dumps(body))

    @classmethod
    def failed(cls, reason: str) -> Report:
        """That it never will be."""
        return cls(json.dumps({"failed": reason}))


class Commit:
    """The commits of one attempt, as one rank takes part in them.

    Args:
        head: everything in a manifest that does not come from ranks' reports; its step and time are filled in.
        data_offset: of the data's minibatches to the run's.
        spec: how long a rank that does not report is waited for, and how many copies there are.
    """

    def __init__(
        self, store: Store, place: Place, head: Manifest, per_step: int, data_offset: int, spec: CheckpointSpec
    ) -> None:
        self._store, self._place, self._head = store, place, head
        self._per_step, self._data_offset = per_step, data_offset
        self._timeout, self._copies = spec.timeout, spec.copies

    def report(self, step: int, report: Report) -> None:
        """Tell rank 0 about this rank's part. Raises PeerLost when the store is gone."""
        self._set(f"checkpoint/{step}/report/{self._place.rank}", report.text)

    def finish(self, step: int, folder: Path) -> int:
        """Commit ``folder``, as the keeper of its place; the bytes of all files of tensors.

        Raises:
            OSError: the manifest cannot be written.
            CheckpointError: a rank has not reported in time.
            PeerLost: another rank could not write its part, or rank 0 is gone.
            RankError: replicas of a stage do not have the same weights.
        """
        made = f"checkpoint/{step}/manifest"
        if self._place.rank == 0:
            text = self._merged(step).text()
            self._set(made, text)
        else:
            text = self._get(made, step, "rank 0")
        if text.startswith("abandoned: "):
            raise PeerLost(text.removeprefix("abandoned: "))
        self._copy(step, folder, text)
        write(folder, text)
        target = layout.committed(folder.parent, step)
        os.rename(folder, target)
        layout.fsync_folder(target.parent)
        self._everywhere(step)
        return sum(entry["bytes"] for entry in json.loads(text)["files"].values())

    def _copy(self, step: int, folder: Path, text: str) -> None:
        """Bring here what other places have, as far as copies of it are kept here."""
        files = {name: FileEntry(**entry) for name, entry in json.loads(text)["files"].items()}
        try:
            copies.bring(self._store, self._place, step, folder, files, self._copies, self._timeout)
        except RuntimeError as error:
            raise PeerLost(f"lost rank 0 while copying step-{step} ({str(error).splitlines()[0]})") from error

    def _everywhere(self, step: int) -> None:
        """Wait until every place has it: only then may one of them delete an older one."""
        self._set(f"checkpoint/{step}/done/{self._place.rank}", "")
        for keeper in self._place.keepers:
            self._get(f"checkpoint/{step}/done/{keeper}", step, f"rank {keeper}")
        if self._place.rank == 0:
            self._store.delete_key(f"checkpoint/{step}/manifest")

    def _merged(self, step: int) -> Manifest:
        """The manifest made of every rank's report; the others learn if there will be none."""
        parts = []
        try:
            for rank in range(len(self._head.ranks)):
                key = f"checkpoint/{step}/report/{rank}"
                part = json.loads(self._get(key, step, f"rank {rank}"))
                self._store.delete_key(key)  # the store keeps everything in memory
                if "failed" in part:
                    raise PeerLost(part["failed"])
                parts.append(part)
            _compare(step, [part["sums"] for part in parts])
        except (CheckpointError, RankError) as error:
            self._set(f"checkpoint/{step}/manifest", f"abandoned: {error.message}")
            raise
        return self._whole(step, parts)

    def _whole(self, step: int, parts: list[dict[str, Any]]) -> Manifest:
        def joined(key: str) -> dict[str, Any]:
            return {name: value for part in parts for name, value in part[key].items()}

        ranks = {
            rank: RankEntry(stage=entry.stage, host=entry.host, scaler=parts[int(rank)]["scaler"])
            for rank, entry in self._head.ranks.items()
        }
        parameters = {
            name: ParameterEntry(file=file, shape=shape, dtype=dtype)
            for name, (file, shape, dtype) in joined("parameters").items()
        }
        return self._head.model_copy(
            update={
                "step": step,
                "data_position": step * self._per_step + self._data_offset,
                "time": time.time(),
                "files": {name: FileEntry(**entry) for name, entry in joined("files").items()},
                "layers": joined("layers"),
                "parameters": parameters,
                "optimizer_values": joined("values"),
                "has_older": any(part["has_older"] for part in parts),
                "ranks": ranks,
            }
        )

    def _set(self, key: str, value: str) -> None:
        try:
            self._store.set(key, value)
        except RuntimeError as error:
            raise PeerLost(f"lost rank 0 while saving ({str(error).splitlines()[0]})") from error

    def _get(self, key: str, step: int, who: str) -> str:
        deadline = time.monotonic() + self._timeout
        try:
            while not self._store.check([key]):
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        f"{who} has not written its part of checkpoint step-{step} within {self._timeout:g} s",
                        "checkpoint.timeout sets the limit, in seconds",
                    )
                time.sleep(POLL)
            return str(self._store.get(key).decode())
        except RuntimeError as error:
            raise PeerLost(f"lost rank 0 while saving step-{step} ({str(error).splitlines()[0]})") from error


def _compare(step: int, sums: list[dict[str, int]]) -> None:
    """Raises RankError where replicas do not have the same weights: another attempt may heal it."""
    seen: dict[str, tuple[int, int]] = {}
    for rank, each in enumerate(sums):
        for name, value in each.items():
            first, known = seen.setdefault(name, (rank, value))
            if known != value:
                raise RankError(
                    f"after step {step} rank {rank} has another {name} than rank {first}, a replica of the same stage",
                    "no number should differ: suspect the memory or the processor of one of their machines",
                )


def write(folder: Path, text: str) -> None:
    """Write a checkpoint's manifest, and bring it and the names of all files to the disk."""
    descriptor = os.open(folder / layout.MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    layout.fsync_folder(folder)
    manifest.read(folder)
