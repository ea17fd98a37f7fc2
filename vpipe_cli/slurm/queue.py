"""What Slurm says of a job: asked with squeue, and with sacct where there is one and squeue has forgotten it.

Slurm is asked on the machine where jobs are submitted, which a transport reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpipe_cli.transport.base import Finished, Transport
from worker.errors import UnreachableError

FIELDS = "%i|%T|%r|%S|%N"
ASK_LIMIT = 20.0  # seconds
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
    | {"REVOKED", "GONE"}
)
UNSAID = ("", "None", "N/A", "(null)", "Unknown")
MISSING = 127  # exit status where there is no such program


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


def array_of(job: str) -> str:
    """The array that a task ``ARRAY_TASK`` is of; a job that is none itself."""
    return job.partition("_")[0]


def parse(line: str) -> tuple[str, Queued]:
    """A line of squeue in ``FIELDS``: which job, or task of an array, and how it stands."""
    job, state, reason, start, nodes = (*line.strip().split("|"), "", "", "", "", "")[:5]
    return job, Queued(state, *("" if each in UNSAID else each for each in (reason, start, nodes)))


def ask(slurm: Transport, job: str) -> dict[str, Queued] | None:
    """How a job stands, or every task of an array, as far as squeue knows; None where Slurm does not answer."""
    command = ("squeue", "--noheader", "--array", "--states=all", f"--jobs={array_of(job)}", f"--format={FIELDS}")
    done = run(slurm, *command)
    if done is None or done.code is None or (done.code and b"Invalid job id" not in done.stderr):
        return None
    lines = [] if done.code else done.stdout.decode(errors="replace").split("\n")
    return dict(parse(line) for line in lines if line.strip())


def accounted(slurm: Transport, job: str) -> Queued:
    """What accounting knows of a job that squeue has forgotten; it is not required."""
    done = run(slurm, "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State")
    said = done.stdout.decode(errors="replace").split("\n")[0].split() if done is not None and done.code == 0 else []
    return Queued(said[0] if said and said[0] in ENDED else "GONE")


def run(slurm: Transport, *command: str, text: str = "") -> Finished | None:
    """A command of Slurm, ended; None where it is missing or does not answer."""
    try:
        done = slurm.run(command, stdin=text.encode(), timeout=ASK_LIMIT)
    except (TimeoutError, UnreachableError):
        return None
    return None if done.code == MISSING else done


def reason(said: bytes) -> str:
    """What sbatch said was wrong, in one line."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    wrong = [line.partition("error: ")[2] for line in lines if line.startswith("sbatch: error: ")]
    return wrong[0] if wrong else lines[-1] if lines else "sbatch said nothing"
