"""What Slurm says of a job: sbatch of a new one, then squeue, and sacct where there is one and squeue has forgotten it.

Slurm is asked on the machine where jobs are submitted, which a transport reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpipe_cli.machines import HERE
from vpipe_cli.transport.base import Finished, Transport
from worker.errors import PreflightError, UnreachableError

SUBMITS = "type it on a login node, where jobs are submitted, or name one that SSH reaches: slurm.login"
ON_PATH = "commands over ssh must find it there: try `ssh {} sbatch --version`, and set PATH in ~/.bashrc"
FIELDS = "%i|%T|%r|%S|%N"
ASK_LIMIT = 20.0  # seconds
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
    | {"REVOKED", "GONE"}
)
UNSAID = ("", "None", "N/A", "(null)", "Unknown")
MISSING = 127  # exit status where there is no such program
SILENT = f"sbatch did not answer within {ASK_LIMIT:g} s"


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


def try_out(slurm: Transport, script: str) -> None:
    """Let Slurm look at a script, without queueing it. Raises PreflightError, UnreachableError."""
    try:
        done = slurm.run(("sbatch", "--test-only"), stdin=script.encode(), timeout=ASK_LIMIT)
    except TimeoutError:
        raise PreflightError(SILENT, "`sinfo` shows whether Slurm is up") from None
    if done.code == MISSING:
        here = slurm.host == HERE
        where, hint = ("this machine", SUBMITS) if here else (slurm.host, ON_PATH.format(slurm.host))
        raise PreflightError(f"there is no sbatch on {where}", hint)
    if done.code:
        raise PreflightError(f"Slurm refuses the job: {reason(done.stderr)}", "`sinfo` lists partitions and nodes")


def submit(slurm: Transport, script: str) -> str:
    """Queue the script in a file; the number of the job.

    Raises:
        PreflightError: it is not in the queue, with Slurm's reason.
        UnreachableError: the connection broke, and nobody knows whether it is.
    """
    try:
        done = slurm.run(("sbatch", "--parsable", script), timeout=ASK_LIMIT)
    except TimeoutError:
        raise PreflightError(f"Slurm refuses the job: {SILENT}", f"the script is {script}") from None
    except UnreachableError as error:
        hint = f"a job that is in the queue all the same ends as it begins; `squeue --me` on {slurm.host} shows it"
        raise UnreachableError(f"{error.message}, while sbatch was to queue the job", hint) from None
    if done.code != 0:
        raise PreflightError(f"Slurm refuses the job: {reason(done.stderr)}", f"the script is {script}")
    return done.stdout.decode().strip().partition(";")[0]


def run(slurm: Transport, *command: str) -> Finished | None:
    """A command of Slurm, ended; None where it is missing or does not answer."""
    try:
        done = slurm.run(command, timeout=ASK_LIMIT)
    except (TimeoutError, UnreachableError):
        return None
    return None if done.code == MISSING else done


def reason(said: bytes) -> str:
    """What sbatch said was wrong, in one line."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    wrong = [line.partition("error: ")[2] for line in lines if line.startswith("sbatch: error: ")]
    return wrong[0] if wrong else lines[-1] if lines else "sbatch said nothing"
