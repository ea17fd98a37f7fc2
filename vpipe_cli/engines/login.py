"""Where a run on Slurm is queued, and has the folder that its nodes see: this machine, or a login node over SSH."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from vpipe_cli.container.ship import Progress
from vpipe_cli.engines import saved
from vpipe_cli.engines.hosts import HostFiles
from vpipe_cli.engines.mirror import Mirror
from vpipe_cli.launch import Launch
from vpipe_cli.onhost.exposed import MEND
from vpipe_cli.onhost.send import ask
from vpipe_cli.runs.store import Run
from vpipe_cli.slurm import delivery, queue, template
from vpipe_cli.transport.base import Transport
from vpipe_cli.transport.local import LocalTransport
from worker.errors import PreflightError, UnreachableError, VpipeError
from worker.spec.files import append_event, seal, write_atomic

CATCH_UP = 30.0  # seconds for what a login node still has
ANSWER_LIMIT = 15.0  # seconds


class Site(Protocol):
    """One run's. What the nodes write into its folder is seen in ``run.folder`` here, now or after ``look``."""

    name: str

    def slurm(self) -> Transport | None:
        """The machine that asks Slurm; None while it does not answer."""

    def request_stop(self) -> None:
        """Leave the wish in the folder. Raises UnreachableError, OSError."""

    def event(self, record: dict[str, Any]) -> None:
        """Add to what happened to the run. Raises UnreachableError, OSError."""

    def look(self, wait: float | None) -> None:
        """Bring what is new here, as ``Engine.refresh`` does."""

    def caught_up(self) -> bool:
        """Whether all that had been written when this was called is here."""


class Here:
    """This machine."""

    name = ""

    def __init__(self, run: Run) -> None:
        self._files = run.files

    def slurm(self) -> Transport:
        """This machine."""
        return LocalTransport()

    def request_stop(self) -> None:
        """Write the file ``stop``."""
        write_atomic(self._files.stop, "")

    def event(self, record: dict[str, Any]) -> None:
        """Append it."""
        append_event(self._files.events, record)

    def look(self, wait: float | None) -> None:
        """Nothing to do: the run's folder is here."""

    def caught_up(self) -> bool:
        """It always is."""
        return True


class LoginNode:
    """A login node elsewhere: the folder is there, and what is here is a copy."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self.name = mirror.head

    def slurm(self) -> Transport | None:
        """The connection that the copy is brought by."""
        return self._mirror.connected()

    def request_stop(self) -> None:
        """Write the file ``stop`` there."""
        self._mirror.request_stop()

    def event(self, record: dict[str, Any]) -> None:
        """Append it there, and bring it here."""
        self._mirror.append("events.jsonl", seal(record))
        self.caught_up()

    def look(self, wait: float | None) -> None:
        """Copy what is new."""
        self._mirror.look(wait)

    def caught_up(self) -> bool:
        """Copy what is new, twice: a pass that is under way may have passed by what was written since it began."""
        for _ in range(2):
            self._mirror.refresh(CATCH_UP, at_once=True)
        return not self._mirror.busy and self._mirror.connected() is not None


def root_of(host: Transport) -> str:
    """Where vpipe keeps everything on a login node.

    Raises:
        PreflightError: others could change it. UnreachableError.
    """
    try:
        answer = ask(host, "kept", {}, timeout=ANSWER_LIMIT)
    except TimeoutError as error:
        raise UnreachableError(str(error), f"try: ssh {host.host} true") from None
    if "error" in answer:
        raise PreflightError(f"{host.host}: {answer['error']}", MEND)
    return str(answer["root"])


def submit(run: Run, launch: Launch, host: Transport, progress: Progress | None, waits: Callable[[Run], None]) -> str:
    """Send a run to its login node and queue it there; the number of its job.

    Args:
        waits: told when all of it is there, before it is queued.
    Raises:
        PreflightError, UnreachableError, ImageError, TransferError
    """
    root = root_of(host)
    with HostFiles(host) as server:
        folder, texts = f"{root}/runs/{run.id}", template.files(launch, root)
        write_atomic(run.files.hosts, json.dumps({host.host: folder}, indent=1) + "\n")
        delivery.send(host, launch.job.spec, progress)
        saved.send(run.files, {host.host: host}, {host.host: folder})
        waits(run)
        known = [run.files.job, run.files.events, run.files.stop]  # a stop that was asked for meanwhile
        texts |= {path.name: path.read_text() for path in known if path.exists()}
        texts |= {f"{name}/.keep": "" for name in ("metrics", *(f"tmp/rank-{rank.rank}" for rank in launch.ranks))}
        files = {f"{folder}/{name}": text for name, text in texts.items()}
        server.ask("write", files={**files, f"{root}/cache/.keep": ""})
        job = queue.submit(host, f"{folder}/{run.files.slurm_script.name}")
        with suppress(VpipeError):  # for people who look at the run from there
            told = {**json.loads(texts["slurm.json"]), "job": job}
            server.ask("write", files={f"{folder}/slurm.json": json.dumps(told, indent=1) + "\n"})
        return job
