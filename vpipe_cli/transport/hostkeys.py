"""Host keys that are trusted: files in the format of known_hosts, vpipe's own one before the user's."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from vpipe_cli.runs.store import kept
from vpipe_cli.transport.target import Target
from worker.errors import UntrustedHost
from worker.spec.files import write_atomic


@dataclass(frozen=True)
class HostKey:
    """A public key: its type (``ssh-ed25519``) and its bytes."""

    type: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As OpenSSH shows it: ``SHA256:`` and 43 characters."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")


@dataclass(frozen=True)
class Recorded:
    """A line of a file of host keys that speaks of the host; ``where`` is ``file:line``."""

    key: HostKey
    where: str
    revoked: bool


def own_file() -> Path:
    """vpipe's own file, which ``vpipe doctor --trust`` writes. Raises PreflightError if others could write it too."""
    return kept("known_hosts")


def recorded(name: str, files: Sequence[str]) -> list[Recorded]:
    """All that is known of a host, vpipe's own record alone if it has one. ``name`` is ``host`` or ``[host]:port``."""
    return list(_of(name, own_file())) or [line for file in files for line in _of(name, Path(file))]


def verify(target: Target, key: HostKey) -> None:
    """Refuse a key that is not the recorded one.

    Raises:
        UntrustedHost: with the fingerprint, and what to do.
    """
    host, name = target.host, target.known_as
    known = recorded(name, target.known_hosts)
    trust = "vpipe doctor CLUSTER.yml --trust"
    if any(line.revoked and line.key == key for line in known):
        raise UntrustedHost(f"{host}: its key {key.type} {key.fingerprint} is marked as revoked")
    good = [line for line in known if not line.revoked]
    if any(line.key == key for line in good):
        return
    if not good:
        raise UntrustedHost(
            f"{host}: the key of {name} is unknown: {key.type} {key.fingerprint}",
            f"if that is the machine's own (there: ssh-keygen -lf /etc/ssh/ssh_host_..._key.pub): {trust}",
        )
    raise UntrustedHost(
        f"{host}: the key of {name} has changed: it shows {key.type} {key.fingerprint}, but {good[0].where} has "
        f"{good[0].key.type} {good[0].key.fingerprint}. It was installed anew, or something stands in between",
        f"ask who runs it; if the new key is right: {trust}",
    )


def record(name: str, key: HostKey) -> None:
    """Trust ``key`` for ``name`` from now on, and no other."""
    path = own_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    lines = [line for line in lines if line.partition(" ")[0] != name]
    write_atomic(path, "\n".join([*lines, f"{name} {key.type} {base64.b64encode(key.blob).decode()}"]) + "\n")


def _of(name: str, path: Path) -> Iterator[Recorded]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return
    for number, line in enumerate(lines, 1):
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#") or marker not in ("", "@revoked"):
            continue
        if _matches(name.lower(), fields[0]):
            try:
                key = HostKey(fields[1], base64.b64decode(fields[2], validate=True))
            except binascii.Error:
                continue
            yield Recorded(key, f"{path}:{number}", marker == "@revoked")


def _matches(name: str, patterns: str) -> bool:
    if patterns.startswith("|1|"):
        _, _, salt, digest = patterns.split("|", 3)
        made = hmac.digest(base64.b64decode(salt), name.encode(), "sha1")
        return base64.b64encode(made).decode() == digest
    given = patterns.lower().split(",")
    plain = [pattern.replace("[", "[[]") for pattern in given]
    if any(pattern.startswith("!") and fnmatchcase(name, pattern[1:]) for pattern in plain):
        return False
    return any(fnmatchcase(name, pattern) for pattern in plain if not pattern.startswith("!"))
