"""The command of the ssh program that gives a person a shell on a machine, reached as vpipe itself reaches it."""

from __future__ import annotations

import shlex

from vpipe_cli.transport.hostkeys import own_file
from vpipe_cli.transport.target import Target, resolve
from worker.spec.ssh import SshSpec

ENTER = 'cd "$1" && exec "${SHELL:-/bin/sh}" -l'


def command(host: str, ssh: SshSpec, folder: str) -> list[str]:
    """An argv. Host keys are checked against the same files, vpipe's own one among them. Raises UsageError."""
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
    return [*argv, "--", host, shlex.join(["sh", "-c", ENTER, "vpipe", folder])]


def _chain(via: Target) -> str:
    hop = f"{via.user}@{via.address}:{via.port}"
    return f"{_chain(via.via)},{hop}" if via.via else hop
