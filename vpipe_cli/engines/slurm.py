"""Runs as jobs of Slurm: the run's folder lies on storage that this machine, a login node, shares with all nodes.

Slurm starts, ends and queues the job; hostd, started by srun, writes the run's folder; here it is only read. What Slurm
says of the job is asked for now and then and left in queue.json.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from vpipe_cli.container.build import prepare
from vpipe_cli.container.code import Bundle
from vpipe_cli.container.ship import Progress
from vpipe_cli.engines.local import write_files
from vpipe_cli.launch import Launch
from vpipe_cli.onhost.send import ask as ask_host
from vpipe_cli.runs.store import Run, home
from vpipe_cli.shipped import code, user_code, user_folder
from vpipe_cli.slurm import queue, template
from vpipe_cli.slurm.queue import Queued
from vpipe_cli.slurm.script import script
from vpipe_cli.transport.local import LocalTransport
from worker.errors import PreflightError, UnreachableError
from worker.spec.cluster import ClusterSpec
from worker.spec.container import ContainerSpec
from worker.spec.files import append_event, read_events, write_atomic
from worker.spec.records import FINAL, State

ASK_EVERY = 5.0  # seconds between two questions to Slurm, which has other users
SUBMITS = "engine slurm runs where jobs are submitted, on a login node: install vpipe there, or log in there first"
CODE_LIMIT = 120.0


class SlurmEngine:
    """The slurm engine."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[float, Queued | None]] = {}

    def check(self, launch: Launch) -> None:
        """Let Slurm look at the script, without queueing it. Raises PreflightError."""
        if shutil.which("sbatch") is None:
            raise PreflightError("there is no sbatch on this machine", SUBMITS)
        done = queue.run("sbatch", "--test-only", text=script(launch, str(home())))
        if done is None:
            raise PreflightError(
                f"sbatch did not answer within {queue.ASK_LIMIT:g} s", "`sinfo` shows whether Slurm is up"
            )
        if done.returncode:
            raise PreflightError(f"Slurm refuses the job: {_reason(done.stderr)}", "`sinfo` lists partitions and nodes")

    def start(self, run: Run, launch: Launch, cluster: str, progress: Progress | None = None) -> None:
        """Write the run's files and queue the job. Raises PreflightError; then nothing of it is left to begin."""
        try:
            write_files(run.files, launch, cluster)
            write_atomic(run.files.launch, template.in_root(launch.model_dump_json(indent=2), str(home())) + "\n")
            self._event(run, "shipping")
            root = str(home())
            _bring(root, launch.job.spec)
            for name, text in template.files(launch, root).items():
                path = run.folder / name
                path.parent.mkdir(mode=0o700, exist_ok=True)
                write_atomic(path, text)
            for rank in launch.ranks:
                (run.folder / "tmp" / f"rank-{rank.rank}").mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(run.files.slurm_script, script(launch, root))
            job = self._submit(run)
        except BaseException as error:
            state: State = "failed" if isinstance(error, Exception) else "stopped"
            with suppress(OSError):
                self._event(run, state, why=f"it could not be queued: {str(error).splitlines()[0]}")
            raise
        self._event(run, "pending", job=job)

    def _submit(self, run: Run) -> str:
        done = queue.run("sbatch", "--parsable", str(run.files.slurm_script))
        if done is None or done.returncode:
            said = _reason(done.stderr) if done else f"sbatch did not answer within {queue.ASK_LIMIT:g} s"
            raise PreflightError(f"Slurm refuses the job: {said}", f"the script is {run.files.slurm_script}")
        job = done.stdout.strip().partition(";")[0]
        told = json.loads(run.files.slurm.read_bytes())
        write_atomic(run.files.slurm, json.dumps({**told, "job": job}, indent=1) + "\n")
        return job

    def refresh(self, run: Run, wait: float | None = None) -> None:
        """Ask Slurm how the job stands, if it was not asked just now; write down an end of which nobody else tells."""
        if any(event.get("state") in FINAL for event in read_events(run.files.events)):
            return
        job = _told(run).get("job")
        if job is None:
            return
        when, known = self._asked.get(run.id, (-ASK_EVERY, None))
        if time.monotonic() - when < ASK_EVERY and wait is None:
            return
        found = queue.ask(job)
        self._asked[run.id] = (time.monotonic(), found)
        if found is not None and found != known:
            with suppress(OSError):  # a folder of somebody else's
                write_atomic(run.files.queue, json.dumps({"job": job, **asdict(found)}) + "\n")
        if found is not None and found.has_ended:
            self._conclude(run, found)

    def _conclude(self, run: Run, found: Queued) -> None:
        """The run's end, where the job has ended without a word of it."""
        states = [event for event in read_events(run.files.events) if event.get("event") == "state"]
        if any(event["state"] in FINAL for event in states):
            return
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
        """Whether the job waits or runs; None where Slurm does not answer."""
        if _told(run).get("job") is None:
            return False
        _, found = self._asked.get(run.id, (0.0, None))
        return None if found is None else not found.has_ended

    def request_stop(self, run: Run) -> None:
        """Leave the wish in the folder; a job that waits is cancelled, one that runs is told to look.

        Raises UnreachableError where Slurm does not answer.
        """
        write_atomic(run.files.stop, "")
        job = _told(run).get("job")
        if job is None:
            return
        found = queue.ask(job)
        if found is None:
            raise UnreachableError("Slurm does not answer; the run stops as soon as a node sees the wish")
        if found.state == "RUNNING":
            queue.run("scancel", "--signal=TERM", job)  # to every hostd: shared storage may be slow to tell
        elif not found.has_ended:
            queue.run("scancel", job)
        if found.state == "PENDING":
            self._event(run, "stopped", _attempt(run), why="a stop was asked for while the job waited")

    def _event(self, run: Run, state: State, attempt: int = 1, **more: Any) -> None:
        record = {"time": time.time(), "event": "state", "state": state, "attempt": attempt, **more}
        append_event(run.files.events, record)


def _told(run: Run) -> dict[str, Any]:
    try:
        found = json.loads(run.files.slurm.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _attempt(run: Run) -> int:
    return max((event.get("attempt", 1) for event in read_events(run.files.events)), default=1)


def _bring(root: str, spec: ClusterSpec) -> None:
    """Code and image, put where all nodes read them. Raises PreflightError."""
    for bundle in [code(), *([user_code(folder)] if (folder := user_folder(spec)) else [])]:
        _unpack(root, bundle)
    os.makedirs(os.path.join(root, "cache"), 0o700, exist_ok=True)
    if spec.container is not None:
        _share(root, spec.container)


def _unpack(root: str, bundle: Bundle) -> None:
    here = LocalTransport()
    place = {"digest": bundle.digest, "root": root}
    if ask_host(here, "code", {"do": "has", **place}, timeout=CODE_LIMIT).get("here"):
        return
    files = [[each.name, each.executable, base64.b64encode(each.content).decode()] for each in bundle.members]
    answer = ask_host(here, "code", {"do": "unpack", "files": files, **place}, timeout=CODE_LIMIT)
    if "error" in answer:
        raise PreflightError(f"the code could not be written below {root}: {answer['error']}")


def _share(root: str, container: ContainerSpec) -> None:
    """Give the image its name among those of ``root``: a link where that can be, else a copy."""
    image = prepare(container.image, container.build_args)
    target = os.path.join(root, "images", f"{image.sha256}.sif")
    if os.path.exists(target):
        return
    os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
    aside = f"{target}.{os.getpid()}"
    try:
        os.link(image.path, aside)
    except OSError:  # another disk
        shutil.copyfile(image.path, aside)
    os.replace(aside, target)


def _reason(said: str) -> str:
    """What sbatch said was wrong, in one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    wrong = [line.partition("error: ")[2] for line in lines if line.startswith("sbatch: error: ")]
    return wrong[0] if wrong else lines[-1] if lines else "sbatch said nothing"
