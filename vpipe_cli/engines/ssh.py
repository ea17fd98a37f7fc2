"""Runs on machines that SSH reaches: a hostd on each, led by the one of rank 0's.

The run's folder on this machine is what everything here reads; ``refresh`` brings into it what is new on the hosts. The
client may go and come back: nothing on the hosts waits for it.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, suppress

from vpipe_cli.container.build import prepare
from vpipe_cli.container.ship import Progress
from vpipe_cli.engines import saved
from vpipe_cli.engines.copies import Copies
from vpipe_cli.engines.hosts import HostFiles
from vpipe_cli.engines.local import is_locked, launching, write_files
from vpipe_cli.engines.mirror import Connect, Mirror
from vpipe_cli.engines.shipping import Shipment
from vpipe_cli.launch import Launch
from vpipe_cli.runs.store import Run
from worker.errors import VpipeError
from worker.spec.cluster import ClusterSpec
from worker.spec.files import append_event, read_events, write_atomic
from worker.spec.records import FINAL, State


class SshEngine:
    """The ssh engine. It keeps connections, nothing else.

    Args:
        connect: reaches hosts of a job; for tests.
    """

    def __init__(self, connect: Connect | None = None) -> None:
        self._copies = Copies(connect)

    def check(self, launch: Launch) -> None:
        """Reach every host and see that it can run its ranks. Raises PreflightError, UnreachableError."""
        from vpipe_cli.doctor import examine, refuse

        with self._copies.reached(launch.job.spec, _hosts_of(launch)) as hosts:
            refuse(examine(hosts, launch.job.spec, quick=True))

    def start(self, run: Run, launch: Launch, cluster: str, progress: Progress | None = None) -> None:
        """Ship the run and start it. Raises PreflightError, UnreachableError; then nothing of it is left to begin."""
        with launching(run):
            try:
                write_files(run.files, launch, cluster)
                self._event(run, "shipping")
                names = _hosts_of(launch)
                with self._copies.reached(launch.job.spec, names) as hosts, ExitStack() as stack:
                    servers = {host: stack.enter_context(HostFiles(hosts[host])) for host in names}
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
        mirror = self._copies.of(run)
        if mirror is None or is_locked(run.files.lock):  # nothing there, or this launch is still on its way
            return
        mirror.look(wait)
        if words := _last_words(run, mirror):
            append_event(run.files.events, {"time": time.time(), "event": "state", "state": "lost", **words})
        self._copies.let_go(run)

    def bring_logs(self, run: Run, wait: float) -> dict[str, VpipeError]:
        """As ``Copies.bring_logs``."""
        return self._copies.bring_logs(run, wait)

    def alive(self, run: Run) -> bool | None:
        """Whether the run is being launched, or its head lives; None where the head does not answer."""
        if is_locked(run.files.lock):
            return True
        mirror = self._copies.of(run)
        if mirror is None:
            return False
        return None if mirror.head in mirror.errors else mirror.alive.get(mirror.head)

    def request_stop(self, run: Run) -> None:
        """Leave the wish with the head. Raises UnreachableError where it does not answer: then nothing was asked."""
        mirror = self._copies.of(run)
        if mirror is not None:
            mirror.request_stop()
        elif not is_locked(run.files.lock):
            self._event(run, "stopped")

    def close(self) -> None:
        """End all connections; the runs do not notice."""
        self._copies.close()

    def _abandon(self, run: Run, error: BaseException) -> None:
        """Leave nothing behind that begins later: the head is told to stop, and the run has ended here."""
        state: State = "failed" if isinstance(error, Exception) else "stopped"
        with suppress(VpipeError, OSError):
            mirror = self._copies.of(run)
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


def _hosts_of(launch: Launch) -> list[str]:
    """The head's host first, then all others in the order of their ranks."""
    return list(dict.fromkeys([launch.head, *(rank.host for rank in launch.ranks)]))
