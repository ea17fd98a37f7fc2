"""The user's keys, and what ~/.ssh/config says where no ``ssh`` can be asked."""

from __future__ import annotations

import base64
import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import paramiko
from paramiko.pkey import UnknownKeyType

from vpipe_cli.transport.ssh.alive import BROKEN
from vpipe_cli.transport.target import Target
from worker.errors import UnreachableError


def log_in(transport: paramiko.Transport, target: Target, deadline: float) -> None:
    """Be let in by one of the user's keys. Raises UnreachableError, which names those that were tried."""
    tried: list[str] = []
    for name, key in _keys(target, tried):
        transport.auth_timeout = max(0.1, deadline - time.monotonic())
        try:
            further = transport.auth_publickey(target.user, key)
        except BROKEN as error:
            tried.append(name)
            if not transport.is_active() or not isinstance(error, paramiko.AuthenticationException):
                break
        else:
            if transport.is_authenticated():
                return
            hint = "vpipe logs in with keys only; is there a way in that asks no person, or run vpipe on that machine?"
            raise UnreachableError(f"{target} wants more than a key: {', '.join(further)}", hint)
    found = f"; tried {', '.join(tried)}" if tried else "; there is no key to try"
    if not transport.is_active():
        raise UnreachableError(f"{target} hung up during the login{found}", f"try: ssh {target.host}")
    hint = "vpipe logs in with keys only: ssh-copy-id brings yours there; ssh: {user: ..., key: ...} names others"
    raise UnreachableError(f"{target} does not let {target.user} in{found}", hint)


def read_config(host: str, path: str) -> Mapping[str, Sequence[str]]:
    """What an ssh_config says of a host, where there is no ``ssh`` to ask; without Include."""
    if not os.path.exists(path):
        return {}
    found = paramiko.SSHConfig.from_path(path).lookup(host)
    return {key: value if isinstance(value, list) else [value] for key, value in found.items()}


def _keys(target: Target, tried: list[str]) -> Iterator[tuple[str, paramiko.PKey]]:
    """The user's keys with their names: files first, for which an agent may stand in, then the agent's others."""
    with contextlib.closing(paramiko.Agent()) as agent:
        held = {key.asbytes(): key for key in agent.get_keys()}
        for path in filter(os.path.exists, target.keys):
            if in_agent := held.pop(_public(path), None):
                yield f"{path} (agent)", in_agent
            elif key := _load(path, tried):
                yield path, key
        if target.agent:
            yield from ((f"agent key {key.comment or key.get_name()}", key) for key in held.values())


def _public(path: str) -> bytes:
    """The public half of a key file, where it lies beside it."""
    try:
        return base64.b64decode(Path(f"{path}.pub").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return b""


def _load(path: str, tried: list[str]) -> paramiko.PKey | None:
    """The private key of a file; None, and a word in ``tried``, where it cannot be used."""
    try:
        key = paramiko.PKey.from_path(path)
        if os.path.exists(f"{path}-cert.pub"):
            key.load_certificate(f"{path}-cert.pub")
        return key
    except (paramiko.PasswordRequiredException, TypeError):  # TypeError: as cryptography says it
        tried.append(f"{path} (locked: ssh-add {path} unlocks it)")
    except (paramiko.SSHException, UnknownKeyType, OSError, ValueError) as error:
        tried.append(f"{path} (cannot be read: {error})")
    return None
