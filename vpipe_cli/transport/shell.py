"""The command of the ssh program that gives a person a terminal on a machine, reached as vpipe itself reaches it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vpipe_cli.transport.hostkeys import own_file
from vpipe_cli.transport.target import Target, resolve
from worker.spec.ssh import SshSpec

ENTER = 'cd "$1" && exec "${SHELL:-/bin/sh}" -l'


def enter(folder: str) -> list[str]:
    """What gives a shell in a folder, on the machine where it is run."""
    return ["sh", "-c", ENTER, "vpipe", folder]


def command(host: str, ssh: SshSpec, there: Sequence[str]) -> list[str]:
    """What runs ``there`` on a host. Host keys are checked against the same files, vpipe's own one among them.

    Raises UsageError.
    """
    target = resolve(host, ssh)
    argv = ["ssh", *(["-F", ssh.config] if ssh.config else []), "-t"]
    settings = {"HostName": target.address, "Port": str(target.port), "User": target.user}
    known = " ".join(f'"{path}"' for path in (str(own_file()), *target.known_hosts))
    settings |= {"UserKnownHostsFile": known, "StrictHostKeyChecking": "yes"}
    if target.via:
        settings["ProxyJump"] = _chain(target.via)
    for name, value in settings.items():
        argv += ["-o", f"{name}={value}"]
    for key in target.keys:
        argv += ["-o", f"IdentityFile={key}"]
    return [*argv, "--", host, shlex.join(there)]


def _chain(via: Target) -> str:
    hop = f"{via.user}@{via.address}:{via.port}"
    return f"{_chain(via.via)},{hop}" if via.via else hop
