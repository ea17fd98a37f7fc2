"""All machines of a job, connected at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from vpipe_cli.transport.base import Transport
from vpipe_cli.transport.hostkeys import HostKey, own_file, record, recorded
from vpipe_cli.transport.local import LocalTransport
from vpipe_cli.transport.target import Target, resolve
from worker.errors import UnreachableError, UntrustedHost, VpipeError
from worker.spec.ssh import SshSpec

if TYPE_CHECKING:
    from vpipe_cli.transport.ssh.link import Link

HERE = "localhost"
HELLO = b"vpipe"
MOST_THREADS = 32

T = TypeVar("T")


class Hosts(Mapping[str, Transport]):
    """Transports by host, in the order given. A context manager that ends all connections.

    ``errors`` holds why others could not be reached, where that was asked for.
    """

    def __init__(self, found: Mapping[str, Transport], errors: Mapping[str, VpipeError], routes: _Routes) -> None:
        self._found, self.errors, self._routes = dict(found), dict(errors), routes

    def __getitem__(self, host: str) -> Transport:
        return self._found[host]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def each(self, action: Callable[[Transport], T]) -> dict[str, T]:
        """``action`` on all hosts at once; what it returns, by host. Raises the first host's error, if any."""
        with ThreadPoolExecutor(min(MOST_THREADS, len(self) or 1)) as pool:
            return dict(zip(self, pool.map(action, self.values()), strict=True))

    def close(self) -> None:
        """End all connections."""
        for transport in self._found.values():
            transport.close()
        self._routes.close()


def connect(hosts: Sequence[str], ssh: SshSpec, *, partial: bool = False) -> Hosts:
    """Connect to all hosts in parallel, and see that each runs commands. Returns within ``connect_timeout`` or so.

    Args:
        hosts: as ``machines`` names them; "localhost" is this machine and needs no SSH.
        partial: keep those that answer, with the others' errors in ``Hosts.errors``, in place of raising.
    Raises:
        PreflightError: others could write the file of trusted keys.
        UnreachableError: names every host that cannot be reached, and why; UntrustedHost where keys are the reason.
    """
    routes = _Routes(ssh)
    found: dict[str, Transport] = {}
    errors: dict[str, VpipeError] = {}
    names = list(dict.fromkeys(hosts))
    with ThreadPoolExecutor(min(MOST_THREADS, len(names) or 1)) as pool:
        outcomes = pool.map(routes.attempt, names)
        for host, outcome in zip(names, outcomes, strict=True):
            if isinstance(outcome, VpipeError):
                errors[host] = outcome
            else:
                found[host] = outcome
    result = Hosts(found, errors, routes)
    if errors and not partial:
        result.close()
        raise _together(list(errors.values()))
    return result


@dataclass(frozen=True)
class Offer:
    """The key that a server shows, and whether it is the recorded one (known), another (changed), or new (unknown)."""

    target: Target
    key: HostKey
    state: str


def trust(host: str, ssh: SshSpec, agree: Callable[[Offer], bool]) -> list[Offer]:
    """Look at the keys of a host and of the jump hosts on the way, the nearest first, and record those agreed to.

    Args:
        agree: asked about each key that is not known; False ends it there.
    Raises:
        UnreachableError: a server does not answer.
    """
    routes = _Routes(ssh)
    try:
        return list(_offers(resolve(host, ssh), routes, agree))
    finally:
        routes.close()


def _offers(target: Target, routes: _Routes, agree: Callable[[Offer], bool]) -> Iterator[Offer]:
    before = list(_offers(target.via, routes, agree)) if target.via else []
    yield from before
    if any(offer.state != "known" for offer in before):
        return  # nobody goes through a machine that is not trusted
    key = routes.shown_key(target)
    known = [line.key for line in recorded(target.known_as, target.known_hosts) if not line.revoked]
    offer = Offer(target, key, "known" if key in known else "changed" if known else "unknown")
    if offer.state != "known" and agree(offer):
        record(target.known_as, key)
        offer = replace(offer, state="known")
    yield offer


class _Routes:
    """The connections in use, one for each server, jump hosts included."""

    def __init__(self, ssh: SshSpec) -> None:
        own_file()  # refused once, and not by each host
        self._ssh, self._lock = ssh, Lock()
        self._links: dict[Target, Link] = {}

    def attempt(self, host: str) -> Transport | VpipeError:
        """A transport that has run a command, or why there is none."""
        try:
            return LocalTransport() if host == HERE else self._connected(resolve(host, self._ssh))
        except VpipeError as error:
            return error
        except TimeoutError as error:
            return UnreachableError(str(error), f"try: ssh {host} true")

    def link(self, target: Target) -> Link:
        """The connection to ``target``, made when it is first used, and to all jump hosts on the way."""
        from vpipe_cli.transport.ssh.link import Link

        via = self.link(target.via) if target.via else None
        with self._lock:
            return self._links.setdefault(target, Link(target, via))

    def shown_key(self, target: Target) -> HostKey:
        """The key that a server shows, which nobody verifies here. Raises UnreachableError."""
        from vpipe_cli.transport.ssh.link import Link

        shown: list[HostKey] = []

        def look(_: Target, key: HostKey) -> None:
            shown.append(key)
            raise UntrustedHost("seen")

        try:
            Link(target, self.link(target.via) if target.via else None, look).transport()
        except UntrustedHost:
            if not shown:
                raise  # a jump host's
        return shown[0]

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            for link in self._links.values():
                link.close()

    def _connected(self, target: Target) -> Transport:
        from vpipe_cli.transport.ssh.session import SshTransport

        transport = SshTransport(self.link(target))
        said = transport.run(["printf", HELLO.decode()], timeout=self._ssh.connect_timeout)
        if said.stdout == HELLO:
            return transport
        words = (said.stdout + said.stderr).removesuffix(HELLO).decode(errors="replace").strip()[:200]
        if said.stdout.endswith(HELLO):
            hint = "its login files (.bashrc) must print nothing when no person is there"
            raise UnreachableError(f"{target} prints text before every command: {words!r}", hint)
        raise UnreachableError(f"{target} runs no commands; it says: {words!r}", f"try: ssh {target.host} true")


def _together(errors: list[VpipeError]) -> VpipeError:
    """One error that names all; of the kind that tells what to do first."""
    if len(errors) == 1:
        return errors[0]
    first = next((error for error in errors if isinstance(error, UntrustedHost)), errors[0])
    message = "\n".join([f"{len(errors)} hosts cannot be used:", *(f"  {error.message}" for error in errors)])
    return (UntrustedHost if isinstance(first, UntrustedHost) else UnreachableError)(message, first.hint)
