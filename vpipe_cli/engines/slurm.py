"""Runs as jobs of Slurm: the run's folder lies on storage that all nodes share with this machine, or a login node.

Slurm starts, ends and queues the job; hostd, started by srun, writes the run's folder; here it is only read, or copied
from the login node. What Slurm says of the job is asked for now and then and left in queue.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Any

from vpipe_cli.container.ship import Progress
from vpipe_cli.engines import login
from vpipe_cli.engines.copies import Copies
from vpipe_cli.engines.hosts import HostFiles
from vpipe_cli.engines.local import is_locked, launching, write_files
from vpipe_cli.engines.login import Site
from vpipe_cli.launch import Launch
from vpipe_cli.runs.store import Run, home
from vpipe_cli.slurm import queue, template
from vpipe_cli.slurm.delivery import bring
from vpipe_cli.slurm.queue import Queued
from vpipe_cli.slurm.script import script
from vpipe_cli.transport.local import LocalTransport
from worker.errors import UnreachableError, VpipeError
from worker.spec.files import append_event, read_events, write_atomic
from worker.spec.records import FINAL, State

ASK_EVERY = 5.0  # seconds between two questions to Slurm, which has other users
NEVER = float("-inf")
DATA = "the nodes read the data from storage that the login node sees too; name where it is over there"


class SlurmEngine:
    """The slurm engine. It keeps what Slurm said last, and connections to login nodes, nothing else."""

    def __init__(self) -> None:
        self._copies = Copies()
        self._said: dict[tuple[str, str], tuple[float, dict[str, Queued] | None]] = {}
        self._found: dict[str, Queued | None] = {}

    def check(self, launch: Launch) -> None:
        """Let Slurm look at the script, without queueing it. Raises PreflightError, UnreachableError."""
        if (name := launch.job.spec.slurm.login) is None:
            queue.try_out(LocalTransport(), script(launch, str(home())))
            return
        with self._copies.reached(launch.job.spec, [name]) as hosts:
            queue.try_out(hosts[name], script(launch, login.root_of(hosts[name])))
            with HostFiles(hosts[name]) as server:
                server.must_have(launch.job.spec, DATA)

    def start(self, run: Run, launch: Launch, cluster: str, progress: Progress | None = None) -> None:
        """Write the run's files and queue the job.

        Raises:
            PreflightError, UnreachableError, ImageError, TransferError: then nothing of it is left to begin.
        """
        with self.queueing([run]):
            if launch.job.spec.slurm.login is None:
                self.prepare(run, launch, cluster)
                bring(str(home()), launch.job.spec)
                self.waits(run)
                self.queued(run, queue.submit(LocalTransport(), str(run.files.slurm_script)))
            else:
                self._start_there(run, launch, launch.job.spec.slurm.login, cluster, progress)

    def _start_there(self, run: Run, launch: Launch, name: str, cluster: str, progress: Progress | None) -> None:
        write_files(run.files, launch, cluster)
        self._event(run, "shipping")
        with self._copies.reached(launch.job.spec, [name]) as hosts:
            self.queued(run, login.submit(run, launch, hosts[name], progress, self.waits))

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
                why = (str(error) or type(error).__name__).splitlines()[0]
                for run in runs:
                    with suppress(OSError, VpipeError):
                        if run.files.hosts.exists():
                            self._site(run).request_stop()
                    with suppress(OSError):
                        self._event(run, state, why=f"it could not be queued: {why}")
                raise

    def prepare(self, run: Run, launch: Launch, cluster: str) -> None:
        """Write all that the run's script needs into its folder; code and image are brought by ``bring``."""
        write_files(run.files, launch, cluster)
        self._event(run, "shipping")
        for name, text in template.files(launch, str(home())).items():
            path = run.folder / name
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomic(path, text)
        for rank in launch.ranks:
            (run.folder / "tmp" / f"rank-{rank.rank}").mkdir(mode=0o700, parents=True, exist_ok=True)

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
        site = self._site(run)
        site.look(wait)
        known, found = self._found.get(run.id), self._ask(site, job, at_once=wait is not None)
        self._found[run.id] = found
        if found is not None and found != known:
            with suppress(OSError):  # a folder of somebody else's
                write_atomic(run.files.queue, json.dumps({"job": job, **asdict(found)}) + "\n")
        if found is not None and found.has_ended:
            self._conclude(run, site, found)
        self._copies.let_go(run)

    def bring_logs(self, run: Run, wait: float) -> dict[str, VpipeError]:
        """As ``Copies.bring_logs``; for a run whose folder is here there is nothing to do."""
        return self._copies.bring_logs(run, wait)

    def close(self) -> None:
        """End all connections; the runs do not notice."""
        self._copies.close()

    def _site(self, run: Run) -> Site:
        mirror = self._copies.of(run)
        return login.Here(run) if mirror is None else login.LoginNode(mirror)

    def _ask(self, site: Site, job: str, at_once: bool) -> Queued | None:
        """How a job stands: all tasks of an array are asked for together, and no more often than is due."""
        if (slurm := site.slurm()) is None:
            return None
        array = (site.name, queue.array_of(job))
        when, said = self._said.get(array, (NEVER, None))
        if at_once or time.monotonic() - when >= ASK_EVERY:
            said = queue.ask(slurm, job)
            self._said[array] = (time.monotonic(), said)
        return None if said is None else said.get(job) or queue.accounted(slurm, job)

    def _conclude(self, run: Run, site: Site, found: Queued) -> None:
        """The run's end, where the job has ended without a word of it."""
        if not site.caught_up():
            self._found[run.id] = None
            return
        if _has_ended(run):
            return
        with suppress(VpipeError):  # the next look tries again
            site.event(self._end_of(run, found))

    def _end_of(self, run: Run, found: Queued) -> dict[str, Any]:
        """What is to be said of it."""
        states = [event for event in read_events(run.files.events) if event.get("event") == "state"]
        last = states[-1] if states else {}
        attempt = last.get("attempt", 1)
        if found.state == "CANCELLED":
            return _state("stopped", attempt, why="the job was cancelled in Slurm")
        if last.get("state") == "pending" and found.state in ("COMPLETED", "GONE") and attempt > 1:
            cause = f"the job was to be queued again, but Slurm says {found.state}"
        else:
            cause = f"the job ended in Slurm as {found.state}, without a word of the run; see {run.files.slurm_log}"
        ranks = json.loads(run.files.launch.read_bytes())["ranks"]
        first = {key: ranks[0][key] for key in ("rank", "stage", "host")}
        state: State = "lost" if found.state == "GONE" else "failed"
        return _state(state, attempt, first_failure={**first, "cause": cause, "step": None})

    def alive(self, run: Run) -> bool | None:
        """Whether the job waits or runs, or is on its way to the queue; None where Slurm does not answer."""
        if not self.job(run):
            return is_locked(run.files.lock)
        found = self._found.get(run.id)
        return None if found is None else not found.has_ended

    def request_stop(self, run: Run) -> None:
        """Leave the wish in the folder; a job that waits is cancelled, one that runs is told to look.

        Raises UnreachableError where Slurm, or the login node, does not answer.
        """
        site = self._site(run)
        site.request_stop()
        if not (job := self.job(run)):
            return
        found, slurm = self._ask(site, job, at_once=True), site.slurm()
        if found is None or slurm is None:
            raise UnreachableError("Slurm does not answer; the run stops as soon as a node sees the wish")
        if found.state == "RUNNING":
            queue.run(slurm, "scancel", "--signal=TERM", job)  # to every hostd: shared storage may be slow
        elif not found.has_ended:
            queue.run(slurm, "scancel", job)
        if found.state == "PENDING":
            self.never_begins(run, "a stop was asked for while the job waited")

    def never_begins(self, run: Run, why: str) -> None:
        """Write down that a run is not in the queue, or no longer, and see that nothing of it begins later."""
        site = self._site(run)
        site.request_stop()
        if not _has_ended(run):
            site.event(_state("stopped", _attempt(run), why=why))

    def _event(self, run: Run, state: State, **more: Any) -> None:
        append_event(run.files.events, _state(state, 1, **more))


def _state(state: State, attempt: int, **more: Any) -> dict[str, Any]:
    return {"time": time.time(), "event": "state", "state": state, "attempt": attempt, **more}


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
