"""Runs on machines that SSH reaches: a hostd on each, led by the one of rank 0's.

The run's folder on this machine is what everything here reads; ``refresh`` brings into it what is new on the hosts. The
client may go and come back: nothing on the hosts waits for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from vpipe_cli.container.build import prepare
from vpipe_cli.container.ship import Progress
from vpipe_cli.engines import saved
from vpipe_cli.engines.hosts import HostFiles
from vpipe_cli.engines.local import is_locked, launching, write_files
from vpipe_cli.engines.mirror import Connect, Mirror
from vpipe_cli.engines.shipping import Shipment
from vpipe_cli.launch import Launch
from vpipe_cli.runs.store import Run
from vpipe_cli.transport.base import Transport
from worker.errors import PreflightError, VpipeError
from worker.spec.cluster import ClusterSpec
from worker.spec.files import append_event, read_events, write_atomic
from worker.spec.job import Job
from worker.spec.records import FINAL, State

FIRST_LOOK = 20.0  # seconds a command waits for what the hosts say, at first
NEXT_LOOK = 0.3  # and later on, while somebody watches


class SshEngine:
    """The ssh engine. It keeps connections, nothing else.

    Args:
        connect: reaches hosts of a job; for tests.
    """

    def __init__(self, connect: Connect | None = None) -> None:
        self._given = connect
        self._mirrors: dict[str, Mirror] = {}

    def check(self, launch: Launch) -> None:
        """Reach every host and see that it can run its ranks. Raises PreflightError, UnreachableError."""
        from vpipe_cli.doctor import examine, refuse

        with self._reached(launch) as hosts:
            refuse(examine(hosts, launch.job.spec, quick=True))
            _look_for_data(launch, hosts)

    def start(self, run: Run, launch: Launch, cluster: str, progress: Progress | None = None) -> None:
        """Ship the run and start it. Raises PreflightError, UnreachableError; then nothing of it is left to begin."""
        with launching(run):
            try:
                write_files(run.files, launch, cluster)
                self._event(run, "shipping")
                with self._reached(launch) as hosts, ExitStack() as stack:
                    servers = {host: stack.enter_context(HostFiles(hosts[host])) for host in _hosts_of(launch)}
                    self._start(run, Shipment(launch, hosts, servers), launch.job.spec, progress)
            except BaseException as error:
                self._abandon(run, error)
                raise

    def _start(self, run: Run, shipment: Shipment, spec: ClusterSpec, progress: Progress | None) -> None:
        write_atomic(run.files.hosts, json.dumps(shipment.folders, indent=1) + "\n")
        image = prepare(spec.container.image, spec.container.build_args) if spec.container else None
        shipment.send(run.files.events.read_text(), image, progress)
        saved.send(run.files, shipment.hosts, shipment.folders)
        shipment.start()

    def refresh(self, run: Run, wait: float | None = None) -> None:
        """Copy what is new from the hosts, as far as they answer; soon, not necessarily at once, while one watches."""
        mirror = self._mirror(run)
        if mirror is None or is_locked(run.files.lock):  # nothing there, or this launch is still on its way
            return
        default = NEXT_LOOK if mirror.passes else FIRST_LOOK
        mirror.refresh(default if wait is None else wait, at_once=wait is not None)
        if words := _last_words(run, mirror):
            append_event(run.files.events, {"time": time.time(), "event": "state", "state": "lost", **words})
        self._let_go(run)

    def _let_go(self, run: Run) -> None:
        """Keep no connections for a run of which everything is here: a sweep has many."""
        if run.files.logs_whole.exists() and (mirror := self._mirrors.get(run.id)) and not mirror.busy:
            self._mirrors.pop(run.id).close()

    def bring_logs(self, run: Run, wait: float) -> dict[str, VpipeError]:
        """Copy all there is of the ranks' logs, as far as that is done in ``wait`` seconds; it goes on behind the
        caller's back. Returns why hosts did not answer."""
        mirror = None if run.files.logs_whole.exists() else self._mirror(run)
        if mirror is None or is_locked(run.files.lock):
            return {}
        mirror.refresh(wait, at_once=True, logs=True)
        errors = dict(mirror.errors)
        self._let_go(run)
        return errors

    def alive(self, run: Run) -> bool | None:
        """Whether the run is being launched, or its head lives; None where the head does not answer."""
        if is_locked(run.files.lock):
            return True
        mirror = self._mirror(run)
        if mirror is None:
            return False
        return None if mirror.head in mirror.errors else mirror.alive.get(mirror.head)

    def request_stop(self, run: Run) -> None:
        """Leave the wish with the head. Raises UnreachableError where it does not answer: then nothing was asked."""
        mirror = self._mirror(run)
        if mirror is not None:
            mirror.request_stop()
        elif not is_locked(run.files.lock):
            self._event(run, "stopped")

    def close(self) -> None:
        """End all connections; the runs do not notice."""
        for mirror in self._mirrors.values():
            mirror.close()
        self._mirrors.clear()

    def _mirror(self, run: Run) -> Mirror | None:
        """The copy of a run that has got as far as its hosts."""
        if run.id not in self._mirrors and run.files.hosts.exists():
            folders = json.loads(run.files.hosts.read_bytes())
            job = Job.model_validate_json(run.files.job.read_bytes())
            ranks = {host: [rank.rank for rank in job.ranks if rank.host == host] for host in folders}
            self._mirrors[run.id] = Mirror(run.files, folders, ranks, self._connector(job.spec))
        return self._mirrors.get(run.id)

    @contextmanager
    def _reached(self, launch: Launch) -> Iterator[dict[str, Transport]]:
        """All hosts of a launch. Raises the error of those that cannot be reached."""
        found, errors = self._connector(launch.job.spec)(_hosts_of(launch))
        try:
            if errors:
                raise _joined(errors)
            yield found
        finally:
            for transport in found.values():
                transport.close()

    def _connector(self, spec: ClusterSpec) -> Connect:
        if self._given:
            return self._given

        def connect(hosts: Sequence[str]) -> tuple[dict[str, Transport], dict[str, VpipeError]]:
            from vpipe_cli.transport.connect import connect as reach

            found = reach(hosts, spec.ssh, partial=True)
            return dict(found), dict(found.errors)

        return connect

    def _abandon(self, run: Run, error: BaseException) -> None:
        """Leave nothing behind that begins later: the head is told to stop, and the run has ended here."""
        state: State = "failed" if isinstance(error, Exception) else "stopped"
        with suppress(VpipeError, OSError):
            mirror = self._mirror(run)
            if mirror is not None:
                mirror.request_stop()
        with suppress(OSError):  # a full disk, which is what the user is told
            why = error.message.splitlines()[0] if isinstance(error, VpipeError) else type(error).__name__
            self._event(run, state, why=f"it could not be started: {why}")

    def _event(self, run: Run, state: State, **more: str) -> None:
        append_event(run.files.events, {"time": time.time(), "event": "state", "state": state, "attempt": 1, **more})


def _last_words(run: Run, mirror: Mirror) -> dict[str, object]:
    """What is to be said of a run whose head will never say it; empty as long as it may.

    Its hostd is gone without a final word; or its machine does not answer, and all others have given it up and ended.
    """
    states = [event for event in read_events(run.files.events) if event.get("event") == "state"]
    if not states or states[-1]["state"] in FINAL:
        return {}
    head, members = mirror.head, mirror.members
    if head not in mirror.errors:
        if mirror.alive.get(head, True):
            return {}
        cause = f"hostd on {head} ended without a word (killed, or the machine was restarted)"
    else:
        ends = [run.folder / f"end-{host}.json" for host in members]
        given_up = all(end.exists() and json.loads(end.read_bytes()).get("head_lost") for end in ends)
        if not members or not given_up:
            return {}
        cause = f"host {head} is lost: it does not answer, and all others have ended their ranks because of it"
    attempt = states[-1].get("attempt", 1)
    failure = {"rank": 0, "stage": 0, "host": head, "cause": cause, "step": None}
    return {"attempt": attempt, "first_failure": failure}


def _look_for_data(launch: Launch, hosts: dict[str, Transport]) -> None:
    """What the first stage reads must be on its hosts. Inside a container the binds decide, and the rank says so."""
    spec = launch.job.spec
    named = {key: getattr(spec.data, key, None) for key in ("path", "target_path")}
    paths = {key: path for key, path in named.items() if path}
    readers = dict.fromkeys(rank.host for rank in launch.ranks if rank.stage == 0)
    for host in readers if paths and spec.container is None else ():
        with HostFiles(hosts[host]) as server:
            there = server.ask("have", paths=list(paths.values()))["there"]
        for key, path in paths.items():
            if path not in there:
                hint = f"stage 0 runs on {', '.join(readers)} and reads the data; copy it there, or name where it is"
                raise PreflightError(f"{host}: data.{key}: no such file or folder: {path!r}", hint)


def _hosts_of(launch: Launch) -> list[str]:
    """The head's host first, then all others in the order of their ranks."""
    return list(dict.fromkeys([launch.head, *(rank.host for rank in launch.ranks)]))


def _joined(errors: dict[str, VpipeError]) -> VpipeError:
    """One error that names all hosts, with the first one's remedy."""
    first = next(iter(errors.values()))
    if len(errors) == 1:
        return first
    return type(first)("\n".join(error.message for error in errors.values()), first.hint)
