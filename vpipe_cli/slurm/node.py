"""A node of a job, through the same seam as any other machine: what runs there is a step beside those of the job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vpipe_cli.placing import INHERITED
from vpipe_cli.transport.base import Channel, Finished, Progress, Transport
from vpipe_cli.transport.shell import enter


class NodeTransport:
    """Commands by srun, typed where jobs are submitted. Files are written there, for the nodes share the storage.

    Of what a step prints srun passes on whole lines.
    """

    def __init__(self, slurm: Transport, job: str, node: str) -> None:
        self.host = node
        self._slurm, self._step = slurm, step(job, node)

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Finished:
        """Run ``argv`` on the node to its end. Raises UnreachableError, TimeoutError."""
        return self._slurm.run([*self._step, *argv], stdin=stdin, timeout=timeout)

    def open(self, argv: Sequence[str], *, timeout: float) -> Channel:
        """Start ``argv`` on the node."""
        return self._slurm.open([*self._step, *argv], timeout=timeout)

    def put(
        self, source: Path | bytes, target: str, *, mode: int = 0o600, progress: Progress | None = None, timeout: float
    ) -> None:
        """Write a file."""
        self._slurm.put(source, target, mode=mode, progress=progress, timeout=timeout)

    def close(self) -> None:
        """Nothing is kept open here."""


def step(job: str, node: str, *options: str) -> list[str]:
    """The beginning of a command that runs on a node of a job and takes none of its resources away.

    Args:
        job: its own number: srun knows no tasks of arrays.
    """
    where = [f"--jobid={job}", f"--nodelist={node}", "--nodes=1", "--ntasks=1", "--overlap"]
    return ["srun", *where, f"--export={','.join([*INHERITED, 'SHELL', 'TERM'])}", "--quiet", *options]


def shell(job: str, node: str, folder: str) -> list[str]:
    """The command that gives a person a shell on a node of a job, in a folder."""
    return [*step(job, node, "--pty"), *enter(folder)]
