"""What Slurm says of a job: asked with squeue, and with sacct where there is one and squeue has forgotten it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

FIELDS = "%T|%r|%S|%N"
ASK_LIMIT = 20.0  # seconds
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
    | {"REVOKED", "GONE"}
)
UNSAID = ("", "None", "N/A", "(null)", "Unknown")


@dataclass(frozen=True)
class Queued:
    """A job as Slurm has it. ``GONE`` is one that it has forgotten.

    Attributes:
        reason: why it waits, in Slurm's own word.
        start: when it began, or may begin: local time as Slurm writes it.
    """

    state: str
    reason: str = ""
    start: str = ""
    nodes: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether it will never run again by itself."""
        return self.state in ENDED


def parse(line: str) -> Queued:
    """A line of squeue in ``FIELDS``."""
    state, reason, start, nodes = (*line.strip().split("|"), "", "", "", "")[:4]
    return Queued(state, *("" if each in UNSAID else each for each in (reason, start, nodes)))


def ask(job: str) -> Queued | None:
    """How a job stands; None where Slurm does not answer."""
    done = run("squeue", "--noheader", "--states=all", f"--jobs={job}", f"--format={FIELDS}")
    if done is None or (done.returncode and "Invalid job id" not in done.stderr):
        return None
    lines = done.stdout.split("\n") if not done.returncode else []
    return parse(lines[0]) if lines and lines[0].strip() else _accounted(job)


def _accounted(job: str) -> Queued:
    """What accounting knows; it is not required."""
    done = run("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State")
    said = done.stdout.split("\n")[0].split() if done is not None and not done.returncode else []
    return Queued(said[0] if said and said[0] in ENDED else "GONE")


def run(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str] | None:
    """A command of Slurm, ended; None where it is missing or does not answer."""
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=ASK_LIMIT)
    except (OSError, subprocess.TimeoutExpired):
        return None
