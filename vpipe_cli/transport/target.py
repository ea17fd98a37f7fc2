"""A host of cluster.yml -> where and how to connect, as ``ssh -G`` and the ``ssh`` section say."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worker.errors import UsageError
from worker.spec.ssh import HOP, NAME, USER, SshHost, SshSpec

SSH_LIMIT = 10.0  # seconds for `ssh -G`, which may run commands of the user's own `Match exec`
MOST_HOPS = 8
MULTIPLE = frozenset({"identityfile"})
"""Settings that may stand several times."""

Settings = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Target:
    """One SSH server. ``via`` is the one to go through; ``command`` the user's own ProxyCommand."""

    host: str
    address: str
    port: int
    user: str
    keys: tuple[str, ...]
    agent: bool
    """Whether keys of the user's agent may be tried that are not in ``keys``."""
    known_as: str
    """The name it has in files of host keys."""
    known_hosts: tuple[str, ...]
    connect_timeout: float
    via: Target | None = None
    command: str = ""

    @property
    def door(self) -> tuple[str, int]:
        """Address and port of the first server on the way, which all that goes through it must enter by."""
        return self.via.door if self.via else (self.address, self.port)

    def __str__(self) -> str:
        route = f" through {self.via.host}" if self.via else ""
        return f"{self.host} ({self.user}@{self.address}:{self.port}{route})"


def resolve(host: str, ssh: SshSpec, user: str | None = None, port: int | None = None, depth: int = 0) -> Target:
    """Where ``host`` is. Runs ``ssh -G``, which connects to nothing.

    Args:
        user, port: what a chain of jump hosts says; they go before all else.
        depth: jump hosts behind this one.
    Raises:
        UsageError: a name is none, the user's ssh_config is wrong, or jump hosts go in circles.
    """
    own = ssh.of(host) if depth == 0 else ssh.hosts.get(host, SshHost())
    user, port = user or own.user, port or own.port
    for text, pattern in ((host, NAME), (user or "u", USER)):
        if not re.fullmatch(pattern, text):
            raise UsageError(f"{text!r} cannot be a host or user; it may have letters, digits, . _ - and no sign first")
    if depth > MOST_HOPS:
        raise UsageError(f"the way to {host} has more than {MOST_HOPS} jump hosts; does one name another in a circle?")
    said = _settings(host, ssh.config, user, port)
    address = own.address or _one(said, "hostname", host)
    port = port or int(_one(said, "port", "22"))
    user = user or _one(said, "user", getpass.getuser())
    if depth and ssh.user and user == getpass.getuser() and not own.user:
        user = ssh.user  # a jump host of which nobody said a user: the one that cluster.yml gives
    keys = [own.key] if own.key else [*said.get("identityfile", []), *([ssh.key] if ssh.key else [])]
    jump = own.jump or _one(said, "proxyjump", "")
    command = "" if jump else _one(said, "proxycommand", "")
    return Target(
        host=host,
        address=address,
        port=port,
        user=user,
        keys=tuple(_expanded(key, host, address, user) for key in keys),
        agent=_one(said, "identitiesonly", "no") != "yes" and not own.key,
        known_as=_one(said, "hostkeyalias", "") or (address if port == 22 else f"[{address}]:{port}"),
        known_hosts=_known_hosts(ssh, said),
        connect_timeout=ssh.connect_timeout,
        via=None if jump in ("", "none") else _chain(jump, ssh, depth),
        command="" if command == "none" else _tokens(command, {"h": address, "p": str(port), "r": user, "n": host}),
    )


def _chain(jump: str, ssh: SshSpec, depth: int) -> Target:
    """The last of a chain of jump hosts, each reached through the one before."""
    via: Target | None = None
    for hop in jump.removeprefix("ssh://").split(","):
        plain = hop.replace("[", "").replace("]", "")  # `ssh -G` puts addresses in brackets
        if not re.fullmatch(HOP, plain):
            raise UsageError(f"{hop!r} cannot be a jump host; write [user@]host[:port]")
        user, _, place = plain.rpartition("@")
        host, _, port = place.partition(":")
        found = resolve(host, ssh, user or None, int(port or 0) or None, depth + 1)
        via = found if via is None else Target(**{**vars(found), "via": via, "command": ""})
    assert via
    return via


def _settings(host: str, config: str | None, user: str | None, port: int | None) -> Settings:
    argv = ["ssh", "-G", *(["-F", config] if config else []), *(["-l", user] if user else [])]
    argv += [*(["-p", str(port)] if port else []), "--", host]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SSH_LIMIT)
    except FileNotFoundError:
        from vpipe_cli.transport.ssh.login import read_config

        return read_config(host, os.path.expanduser(config or "~/.ssh/config"))
    except subprocess.TimeoutExpired:
        raise UsageError(f"`ssh -G {host}` does not end; does ~/.ssh/config run a command (Match exec)?") from None
    if done.returncode:
        raise UsageError(f"`ssh -G {host}` says: {done.stderr.strip()}", "mend your ssh_config, or name it: ssh.config")
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        found[key].append(value)
    return found


def _one(said: Settings, key: str, default: str) -> str:
    return said[key][0] if said.get(key) else default


def _known_hosts(ssh: SshSpec, said: Settings) -> tuple[str, ...]:
    files = [] if ssh.known_hosts is None else [ssh.known_hosts]
    for key in ("userknownhostsfile", "globalknownhostsfile"):
        files += _one(said, key, "").split()
    return tuple(os.path.expanduser(file) for file in files if file != "none")


def _expanded(path: str, host: str, address: str, user: str) -> str:
    tokens = {"d": os.path.expanduser("~"), "u": getpass.getuser(), "h": address, "n": host, "r": user}
    return os.path.expanduser(_tokens(path, tokens))


def _tokens(text: str, values: Mapping[str, str]) -> str:
    """``%h`` and its like replaced, as ssh_config(5) tells."""
    return re.sub(r"%(.)", lambda found: {**values, "%": "%"}.get(found[1], found[0]), text)
