"""The images of all machines of a job, or of this one: asked about, verified, pruned, at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from vpipe_cli import machines
from vpipe_cli.container.code import gather
from vpipe_cli.onhost.send import ask
from vpipe_cli.runs.store import home
from vpipe_cli.transport.base import Transport
from vpipe_cli.transport.connect import HERE, connect
from worker.errors import ImageError
from worker.spec.cluster import ClusterSpec
from worker.spec.ssh import SshSpec

SECONDS = 600.0
"""A machine may have to read tens of gigabytes."""


@contextmanager
def reached(spec: ClusterSpec | None) -> Iterator[Mapping[str, Transport]]:
    """The machines of a job, connected; without one this machine. Raises UnreachableError."""
    names = machines.hosts(machines.slots(spec.machines)) if spec else [HERE]
    with connect(names, spec.ssh if spec else SshSpec()) as hosts:
        yield hosts


def everywhere(hosts: Mapping[str, Transport], request: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What ``vpipe_cli.onhost.shelf`` answers on each host. Raises ImageError with all that failed."""

    def one(host: str, transport: Transport) -> dict[str, Any]:
        own = {"root": str(home())} if host == HERE else {}
        answer: dict[str, Any] = ask(transport, "shelf", {**request, **own}, timeout=SECONDS)
        if "error" in answer:
            raise ImageError(f"{host}: {answer['error']}")
        return answer

    with ThreadPoolExecutor(max(1, min(32, len(hosts)))) as pool:
        asked = {host: pool.submit(one, host, transport) for host, transport in hosts.items()}
    gather({host: future.exception() or "" for host, future in asked.items()})
    return {host: future.result() for host, future in asked.items()}
