"""Command lines: what a login shell is told to run, and the ssh program that gives a person a terminal."""

from __future__ import annotations

import base64
import os
import re
import shlex
from collections.abc import Sequence

from vpipe_cli.transport.hostkeys import own_file
from vpipe_cli.transport.target import Target, resolve
from worker.errors import UsageError
from worker.spec.ssh import SshSpec

MOST_ARGV = 96_000  # bytes of a command line; Linux takes 128 KiB in one piece, and these grow by a third
ENTER = 'cd "$1" && exec "${SHELL:-/bin/sh}" -l'


def command_line(argv: Sequence[str], quiet: bool = False) -> str:
    """One line that runs ``argv`` whatever the login shell is: nothing in it means anything to sh, csh, fish or zsh.

    Args:
        quiet: discard its errors.
    Raises:
        UsageError: it is too long for a command line, or holds a NUL.
    """
    text = shlex.join(argv)
    if len(os.fsencode(text)) > MOST_ARGV or "\0" in text:
        raise UsageError(f"the command {argv[0]} has a NUL or more than {MOST_ARGV} bytes; send them to its input")
    if not quiet and re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*( [A-Za-z0-9_.,:/+-]+)*", text):
        return text
    coded = base64.b64encode(os.fsencode(text)).decode()
    silence = " 2>/dev/null" if quiet else ""
    return f"exec /bin/sh -c 'eval \"exec $(printf %s $0 | base64 -d){silence}\"' {coded}"


def enter(folder: str) -> list[str]:
    """What gives a shell in a folder, on the machine where it is run."""
    return ["sh", "-c", ENTER, "vpipe", folder]


def command(host: str, ssh: SshSpec, there: Sequence[str]) -> list[str]:
    """The ssh program that runs ``there`` on a host, reached as vpipe itself reaches it. Raises UsageError.

    Host keys are checked against the same files, vpipe's own one among them.
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
