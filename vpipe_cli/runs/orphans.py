"""Processes of runs that have ended: on this machine, and on the hosts of all runs known here."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from vpipe_cli.onhost import send
from vpipe_cli.runs.places import hosts_of, ssh_of
from vpipe_cli.runs.store import list_runs
from vpipe_cli.transport.base import Transport
from vpipe_cli.transport.connect import HERE, connect
from worker.errors import VpipeError
from worker.spec.ssh import SshSpec

LIMIT = 30.0


@dataclass(frozen=True)
class Orphan:
    """A process that carries the token of a run nobody watches over. ``ended``: whether it was ended just now."""

    host: str
    pid: int
    run: str
    rank: int | None
    user: str
    command: str
    ended: bool | None = None


def orphans(kill: bool = False, young: float | None = None) -> tuple[list[Orphan], dict[str, str]]:
    """All orphans, ended if asked so; and the hosts that could not be asked, with the reason.

    Args:
        young: seconds that a process may have whose hostd is just ending; for tests.
    """
    request = {"kill": kill} if young is None else {"kill": kill, "young": young}
    with ExitStack() as stack:
        transports: dict[str, Transport] = {}
        silent: dict[str, str] = {}
        for ssh, hosts in _machines():
            found = stack.enter_context(connect(hosts, ssh, partial=True))
            transports.update(found)
            silent |= {host: error.message for host, error in found.errors.items()}
        with ThreadPoolExecutor(len(transports)) as pool:
            asked = pool.map(lambda each: _ask(each, request), transports.values())
            answers = dict(zip(transports, asked, strict=True))
    seen: list[Orphan] = []
    for host, answer in answers.items():
        if isinstance(answer, str):
            silent[host] = answer
        else:
            seen += [Orphan(host, **{key: each[key] for key in each if key != "begun"}) for each in answer]
    return seen, silent


def _ask(transport: Transport, request: dict[str, Any]) -> list[dict[str, Any]] | str:
    try:
        found: list[dict[str, Any]] = send.ask(transport, "strays", request, timeout=LIMIT)
    except VpipeError as error:
        return error.message
    except TimeoutError as error:
        return str(error)
    return found


def _machines() -> Iterator[tuple[SshSpec, list[str]]]:
    """This machine, and every host that a run known here was on, with how the newest such run reached it."""
    yield SshSpec(), [HERE]
    seen: set[str] = {HERE}
    for run in list_runs():
        if hosts := [host for host in hosts_of(run) if host not in seen]:
            seen.update(hosts)
            yield ssh_of(run), hosts
