"""The name of every file of a run, once; and how such files are written so that no reader sees half of one."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFiles:
    """The files of one run below ``folder``."""

    folder: Path

    @property
    def cluster(self) -> Path:
        """cluster.yml as the user gave it."""
        return self.folder / "cluster.yml"

    @property
    def job(self) -> Path:
        """The resolved job that every rank reads."""
        return self.folder / "job.json"

    @property
    def plan(self) -> Path:
        """Partition and recompute ratios, with their reason."""
        return self.folder / "plan.json"

    @property
    def launch(self) -> Path:
        """Exact argv, environment and files of every rank; what hostd executes."""
        return self.folder / "launch.json"

    @property
    def events(self) -> Path:
        """What happened to the run, one checksummed line an event."""
        return self.folder / "events.jsonl"

    @property
    def data(self) -> Path:
        """What the first stage found out about the data: its baseline loss."""
        return self.folder / "data.json"

    @property
    def result(self) -> Path:
        """The numbers a finished run ends with."""
        return self.folder / "result.json"

    @property
    def loss_plot(self) -> Path:
        """The loss over steps, as a picture."""
        return self.folder / "loss.png"

    @property
    def lock(self) -> Path:
        """Locked by hostd and its ranks as long as any of them lives."""
        return self.folder / "alive.lock"

    @property
    def stop(self) -> Path:
        """Exists once a stop was asked for."""
        return self.folder / "stop"

    @property
    def hostd_log(self) -> Path:
        """What hostd itself had to say."""
        return self.folder / "hostd.log"

    @property
    def checkpoints(self) -> Path:
        """What the run saved; see ``worker.checkpoint.layout`` for the names inside."""
        return self.folder / "checkpoints"

    @property
    def request(self) -> Path:
        """What was typed: where cluster.yml lay, and the overrides; what ``vpipe resume`` starts from."""
        return self.folder / "request.json"

    @property
    def slurm(self) -> Path:
        """Of a run on Slurm: its job, and what the steps inside the allocation must know."""
        return self.folder / "slurm.json"

    @property
    def slurm_script(self) -> Path:
        """What sbatch was given."""
        return self.folder / "slurm.sh"

    @property
    def slurm_log(self) -> Path:
        """What the script, srun and every hostd before its own log had to say."""
        return self.folder / "slurm.log"

    @property
    def queue(self) -> Path:
        """How Slurm said the job stands, when it was last asked."""
        return self.folder / "queue.json"

    @property
    def preempt(self) -> Path:
        """Exists once Slurm has said that the allocation ends soon: the run is to be saved and to leave."""
        return self.folder / "preempt"

    @property
    def hosts(self) -> Path:
        """Of a run on other hosts: its folder on each, by host, the head's first."""
        return self.folder / "hosts.json"

    @property
    def logs_whole(self) -> Path:
        """Says, on the client, that every byte of every log is here; until then they are asked for on the hosts."""
        return self.folder / "logs-whole"

    @property
    def notes(self) -> Path:
        """What people wrote about the run, on the machine it was launched from."""
        return self.folder / "notes.jsonl"

    def attempt(self, attempt: int) -> Path:
        """The folder of one attempt, counted from 1."""
        return self.folder / f"attempt-{attempt}"

    def log(self, attempt: int, rank: int) -> Path:
        """Everything a rank printed, each line stamped."""
        return self.attempt(attempt) / f"rank-{rank}.log"

    def error(self, attempt: int, rank: int) -> Path:
        """What a rank itself knows of its failure."""
        return self.attempt(attempt) / f"rank-{rank}.error.json"

    def ready(self, attempt: int, rank: int) -> Path:
        """Exists once a rank has met all others and is about to train."""
        return self.attempt(attempt) / f"rank-{rank}.ready"

    def exit(self, attempt: int, rank: int) -> Path:
        """How a rank ended; written last, by hostd."""
        return self.attempt(attempt) / f"rank-{rank}.exit.json"

    def progress(self, attempt: int, rank: int) -> Path:
        """What a rank does at this moment; ``worker.progress`` writes it in place, hostd reads it."""
        return self.attempt(attempt) / f"rank-{rank}.progress"

    def stacks(self, attempt: int, rank: int) -> Path:
        """The stacks of a rank's threads, each time it was asked for them (SIGUSR2)."""
        return self.attempt(attempt) / f"rank-{rank}.stacks"

    def trace(self, rank: int) -> Path:
        """Timed spans of one rank in some of its steps, as ``worker.trace`` writes them."""
        return self.folder / "trace" / f"rank-{rank}.jsonl"

    def torch_trace(self, rank: int) -> Path:
        """Torch's own profile of one rank, as ``worker.torch_profile`` writes it."""
        return self.folder / "trace" / f"rank-{rank}.torch.json"

    def metrics(self, rank: int) -> Path:
        """Numbers per step of one rank."""
        return self.folder / "metrics" / f"rank-{rank}.jsonl"


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` aside, fsync it, rename it into place, and fsync the folder. Mode 0600."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def seal(record: dict[str, Any]) -> str:
    """One line of events.jsonl: the record with a checksum of itself as its last key. hostd.py has its twin."""
    body = json.dumps(record, separators=(",", ":"))
    return f'{body[:-1]},"crc":"{zlib.crc32(body.encode()):08x}"}}\n'


def append_event(path: Path, record: dict[str, Any]) -> None:
    """Append one sealed event, durably, on a line of its own even after one that a killed writer left torn."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        rest = (b"\n" if _torn(descriptor) else b"") + seal(record).encode()
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _torn(descriptor: int) -> bool:
    """Whether the file's last line was begun and not ended. hostd has its twin."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The whole events of a run, in order. A torn or altered line is passed over."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            record = json.loads(line)
            crc = record.pop("crc")
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        if seal(record).rstrip("\n") == line.rstrip() and crc:
            yield record
