"""The runs of an engine that live on other machines: the copy of each that is here, and the way to those machines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vpipe_cli.engines.local import is_locked
from vpipe_cli.engines.mirror import Connect, Mirror
from vpipe_cli.runs.store import Run
from vpipe_cli.transport.base import Transport
from worker.errors import VpipeError
from worker.spec.cluster import ClusterSpec
from worker.spec.job import Job


class Copies:
    """A Mirror for each run, made when it is first asked for. It keeps connections, nothing else.

    Args:
        connect: reaches hosts of a job; for tests.
    """

    def __init__(self, connect: Connect | None = None) -> None:
        self._given = connect
        self._mirrors: dict[str, Mirror] = {}

    def of(self, run: Run) -> Mirror | None:
        """The copy of a run that has got as far as its hosts."""
        if run.id not in self._mirrors and run.files.hosts.exists():
            folders = json.loads(run.files.hosts.read_bytes())
            job = Job.model_validate_json(run.files.job.read_bytes())
            shared = job.spec.engine == "slurm"  # then the login node has the files of all nodes
            ranks = {host: [rank.rank for rank in job.ranks if shared or rank.host == host] for host in folders}
            self._mirrors[run.id] = Mirror(run.files, folders, ranks, self.connector(job.spec), shared)
        return self._mirrors.get(run.id)

    def let_go(self, run: Run) -> None:
        """Keep no connections for a run of which everything is here: a sweep has many."""
        if run.files.logs_whole.exists() and (mirror := self._mirrors.get(run.id)) and not mirror.busy:
            self._mirrors.pop(run.id).close()

    def bring_logs(self, run: Run, wait: float) -> dict[str, VpipeError]:
        """Copy all there is of the ranks' logs, as far as that is done in ``wait`` seconds; it goes on behind the
        caller's back. Returns why hosts did not answer."""
        mirror = None if run.files.logs_whole.exists() else self.of(run)
        if mirror is None or is_locked(run.files.lock):
            return {}
        mirror.refresh(wait, at_once=True, logs=True)
        errors = dict(mirror.errors)
        self.let_go(run)
        return errors

    def close(self) -> None:
        """End all connections; the runs do not notice."""
        for mirror in self._mirrors.values():
            mirror.close()
        self._mirrors.clear()

    @contextmanager
    def reached(self, spec: ClusterSpec, hosts: Sequence[str]) -> Iterator[dict[str, Transport]]:
        """Connections to some hosts of a job. Raises the error of those that cannot be reached."""
        found, errors = self.connector(spec)(hosts)
        try:
            if errors:
                raise _joined(errors)
            yield found
        finally:
            for transport in found.values():
                transport.close()

    def connector(self, spec: ClusterSpec) -> Connect:
        """Reaches hosts as the job's ``ssh`` section says."""
        if self._given:
            return self._given

        def connect(hosts: Sequence[str]) -> tuple[dict[str, Transport], dict[str, VpipeError]]:
            from vpipe_cli.transport.connect import connect as reach

            found = reach(hosts, spec.ssh, partial=True)
            return dict(found), dict(found.errors)

        return connect


def _joined(errors: dict[str, VpipeError]) -> VpipeError:
    """One error that names all hosts, with the first one's remedy."""
    first = next(iter(errors.values()))
    if len(errors) == 1:
        return first
    return type(first)("\n".join(error.message for error in errors.values()), first.hint)
