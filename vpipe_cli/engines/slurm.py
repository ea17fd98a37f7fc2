"""Runs as jobs of Slurm: the run's folder lies on storage that this machine, a login node, shares with all nodes.

Slurm starts, ends and queues the job; hostd, started by srun, writes the run's folder; here it is only read. What Slurm
says of the job is asked for now and then and left in queue.json.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vpipe_cli.container.ship import Progress
from vpipe_cli.engines.local import is_locked, launching, write_files
from vpipe_cli.launch import Launch
from vpipe_cli.runs.store import Run, home
from vpipe_cli.slurm import queue, template
from vpipe_cli.slurm.delivery import bring
from vpipe_cli.slurm.queue import Queued
from vpipe_cli.slurm.script import script
from vpipe_cli.transport.base import Finished
from vpipe_cli.transport.local import LocalTransport
from worker.errors import PreflightError, UnreachableError
from worker.spec.files import append_event, read_events, write_atomic
from worker.spec.records import FINAL, State

ASK_EVERY = 5.0  # seconds between two questions to Slurm, which has other users
SILENT = f"sbatch did not answer within {queue.ASK_LIMIT:g} s"
SUBMITS = "engine slurm runs where jobs are submitted, on a login node: install vpipe there, or log in there first"
NEVER = float("-inf")


class SlurmEngine:
    """The slurm engine. It keeps what Slurm said last, nothing else."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, dict[str, Queued] | None]] = {}
        self._found: dict[str, Queued | None] = {}

    def check(self, launch: Launch) -> None:
        """Let Slurm look at the script, without queueing it. Raises PreflightError."""
        if shutil.which("sbatch") is None:
            raise PreflightError("there is no sbatch on this machine", SUBMITS)
        done = queue.run(LocalTransport(), "sbatch", "--test-only", text=script(launch, str(home())))
        if done is None:
            raise PreflightError(SILENT, "`sinfo` shows whether Slurm is up")
        if done.code:
            hint = "`sinfo` lists partitions and nodes"
            raise PreflightError(f"Slurm refuses the job: {queue.reason(done.stderr)}", hint)

    def start(self, run: Run, launch: Launch, cluster: str, progress: Progress | None = None) -> None:
        """Write the run's files and queue the job. Raises PreflightError; then nothing of it is left to begin."""
        with self.queueing([run]):
            self.prepare(run, launch, cluster)
            bring(str(home()), launch.job.spec)
            self.waits(run)
            done = queue.run(LocalTransport(), "sbatch", "--parsable", str(run.files.slurm_script))
            self.queued(run, number(done, run.files.slurm_script))

    @contextmanager
    def queueing(self, runs: Sequence[Run]) -> Iterator[None]:
        """Runs on their way to the queue: alive as long as this process is, and ended where it does not get there."""
        with ExitStack() as stack:
            try:
                for run in runs:
                    stack.enter_context(launching(run))
                yield
            except BaseException as error:
                state: State = "failed" if isinstance(error, Exception) else "stopped"
                for run in runs:
                    with suppress(OSError):
                        self._event(run, state, why=f"it could not be queued: {str(error).splitlines()[0]}")
                raise

    def prepare(self, run: Run, launch: Launch, cluster: str) -> None:
        """Write all that the run's script needs into its folder; code and image are brought by ``bring``."""
        root = str(home())
        write_files(run.files, launch, cluster)
        write_atomic(run.files.launch, template.in_root(launch.model_dump_json(indent=2), root) + "\n")
        self._event(run, "shipping")
        for name, text in template.files(launch, root).items():
            path = run.folder / name
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomic(path, text)
        for rank in launch.ranks:
            (run.folder / "tmp" / f"rank-{rank.rank}").mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(run.files.slurm_script, script(launch, root))

    def waits(self, run: Run) -> None:
        """Write down that it waits: before it is queued, for what its own job writes comes later."""
        self._event(run, "pending")

    def queued(self, run: Run, job: str) -> None:
        """Write down which job the run is."""
        write_atomic(run.files.slurm, json.dumps({**_told(run), "job": job}, indent=1) + "\n")

    def job(self, run: Run) -> str:
        """The run's job in Slurm, or the task ``ARRAY_TASK`` that it is; empty where it has not been queued."""
        return str(_told(run).get("job") or "")

    def refresh(self, run: Run, wait: float | None = None) -> None:
        """Ask Slurm how the job stands, if it was not asked just now; write down an end of which nobody else tells."""
        if _has_ended(run) or not (job := self.job(run)):
            return
        known, found = self._found.get(run.id), self._ask(job, at_once=wait is not None)
        self._found[run.id] = found
        if found is not None and found != known:
            with suppress(OSError):  # a folder of somebody else's
                write_atomic(run.files.queue, json.dumps({"job": job, **asdict(found)}) + "\n")
        if found is not None and found.has_ended:
            self._conclude(run, found)

    def _ask(self, job: str, at_once: bool) -> Queued | None:
        """How a job stands: all tasks of an array are asked for together, and no more often than is due."""
        array = queue.array_of(job)
        when, said = self._said.get(array, (NEVER, None))
        if at_once or time.monotonic() - when >= ASK_EVERY:
            said = queue.ask(LocalTransport(), job)
            self._said[array] = (time.monotonic(), said)
        return None if said is None else said.get(job) or queue.accounted(LocalTransport(), job)

    def _conclude(self, run: Run, found: Queued) -> None:
        """The run's end, where the job has ended without a word of it."""
        if _has_ended(run):
            return
        states = [event for event in read_events(run.files.events) if event.get("event") == "state"]
        last = states[-1] if states else {}
        attempt = last.get("attempt", 1)
        if found.state == "CANCELLED":
            self._event(run, "stopped", attempt, why="the job was cancelled in Slurm")
            return
        if last.get("state") == "pending" and found.state in ("COMPLETED", "GONE") and attempt > 1:
            cause = f"the job was to be queued again, but Slurm says {found.state}"
        else:
            cause = f"the job ended in Slurm as {found.state}, without a word of the run; see {run.files.slurm_log}"
        ranks = json.loads(run.files.launch.read_bytes())["ranks"]
        first = {key: ranks[0][key] for key in ("rank", "stage", "host")}
        state: State = "lost" if found.state == "GONE" else "failed"
        self._event(run, state, attempt, first_failure={**first, "cause": cause, "step": None})

    def alive(self, run: Run) -> bool | None:
        """Whether the job waits or runs, or is on its way to the queue; None where Slurm does not answer."""
        if not self.job(run):
            return is_locked(run.files.lock)
        found = self._found.get(run.id)
        return None if found is None else not found.has_ended

    def request_stop(self, run: Run) -> None:
        """Leave the wish in the folder; a job that waits is cancelled, one that runs is told to look.

        Raises UnreachableError where Slurm does not answer.
        """
        write_atomic(run.files.stop, "")
        if not (job := self.job(run)):
            return
        found = self._ask(job, at_once=True)
        if found is None:
            raise UnreachableError("Slurm does not answer; the run stops as soon as a node sees the wish")
        if found.state == "RUNNING":
            queue.run(LocalTransport(), "scancel", "--signal=TERM", job)  # to every hostd: shared storage may be slow
        elif not found.has_ended:
            queue.run(LocalTransport(), "scancel", job)
        if found.state == "PENDING":
            self.never_begins(run, "a stop was asked for while the job waited")

    def never_begins(self, run: Run, why: str) -> None:
        """Write down that a run is not in the queue, or no longer, and see that nothing of it begins later."""
        write_atomic(run.files.stop, "")
        if not _has_ended(run):
            self._event(run, "stopped", _attempt(run), why=why)

    def _event(self, run: Run, state: State, attempt: int = 1, **more: Any) -> None:
        record = {"time": time.time(), "event": "state", "state": state, "attempt": attempt, **more}
        append_event(run.files.events, record)


def number(done: Finished | None, path: Path) -> str:
    """The job that sbatch says it has queued. Raises PreflightError with its reason where it has not.

    Args:
        path: the script.
    """
    if done is None or done.code != 0:
        said = queue.reason(done.stderr) if done else SILENT
        raise PreflightError(f"Slurm refuses the job: {said}", f"the script is {path}")
    return done.stdout.decode().strip().partition(";")[0]


def _has_ended(run: Run) -> bool:
    return any(event.get("state") in FINAL for event in read_events(run.files.events))


def _told(run: Run) -> dict[str, Any]:
    try:
        found = json.loads(run.files.slurm.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _attempt(run: Run) -> int:
    return max((event.get("attempt", 1) for event in read_events(run.files.events)), default=1)
