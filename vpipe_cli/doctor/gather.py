"""Facts from all hosts at once, each host in one round trip; and which of them reach which."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from vpipe_cli.onhost import send
from vpipe_cli.transport.base import Channel, Transport
from worker.errors import VpipeError

FACTS_LIMIT = 14.0
"""Seconds for the facts of a host, whose every command has less."""
PORTS_LIMIT = 8.0
THREADS = 32

T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """What a host answered. ``offset`` is how far its clock is ahead of this one: the least and the most it can be."""

    facts: dict[str, Any]
    offset: tuple[float, float]


def everywhere(hosts: Mapping[str, Transport], do: Callable[[str, Transport], T]) -> dict[str, T | VpipeError]:
    """``do`` on every host at once; an error takes the place of a host's answer."""

    def guarded(host: str) -> T | VpipeError:
        try:
            return do(host, hosts[host])
        except VpipeError as error:
            return error
        except TimeoutError as error:
            return VpipeError(f"{host}: {error}")

    with ThreadPoolExecutor(min(THREADS, len(hosts)) or 1) as pool:
        return dict(zip(hosts, pool.map(guarded, hosts), strict=True))


def facts(
    hosts: Mapping[str, Transport], requests: Mapping[str, dict[str, Any]], clock: Callable[[], float] = time.time
) -> dict[str, Report | VpipeError]:
    """The facts of every host, as ``vpipe_cli.onhost.facts`` tells them."""

    def one(host: str, transport: Transport) -> Report:
        asked = clock()
        found = send.ask(transport, "facts", requests[host], timeout=FACTS_LIMIT)
        answered = clock()
        return Report(found, (found["clock"]["ended"] - answered, found["clock"]["began"] - asked))

    return everywhere(hosts, one)


def ports(hosts: Mapping[str, Transport], addresses: Mapping[str, list[str]]) -> dict[str, dict[str, Any] | VpipeError]:
    """For every host, what it met when it called each other one: see ``vpipe_cli.onhost.reach.call``."""
    tokens = {host: secrets.token_hex(16) for host in hosts}
    channels: list[Channel] = []

    def listen(host: str, transport: Transport) -> list[list[Any]]:
        request = {"listen": tokens[host], "addresses": addresses[host], "seconds": 3 * PORTS_LIMIT}
        channel = send.start(transport, "reach", request, timeout=PORTS_LIMIT)
        channels.append(channel)
        said = b""
        while not said.endswith(b"\n"):
            piece = channel.read(PORTS_LIMIT)
            if not piece:
                return []
            said += piece
        found: list[list[Any]] = json.loads(said)
        return found

    def call(host: str, transport: Transport) -> dict[str, Any]:
        others = {name: at for name, at in listening.items() if name != host and not isinstance(at, VpipeError)}
        targets = {name: {"token": tokens[name], "endpoints": at} for name, at in others.items()}
        found: dict[str, Any] = send.ask(transport, "reach", {"call": targets}, timeout=PORTS_LIMIT + 4)
        return found

    try:
        listening = everywhere(hosts, listen)
        return everywhere(hosts, call)
    finally:
        for channel in channels:
            channel.close()
