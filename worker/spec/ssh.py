"""How machines are reached by SSH: the ``ssh`` section of cluster.yml.

What is not said here is what ``ssh -G HOST`` says. Names are held to letters, digits and a few signs: they end up in
command lines and, through ~/.ssh/config, in other programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from worker.spec.section import Misfit, Section

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}"
"""A host name or alias; never an option, never anything a shell would read."""
USER = r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}"
HOP = rf"(?:{USER}@)?{NAME}(?::[0-9]{{1,5}})?"

Name = Annotated[str, Field(pattern=rf"^{NAME}$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class SshWay(Section):
    """What may be said of all machines, and of one; each may be left out."""

    user: Annotated[str, Field(pattern=rf"^{USER}$")] | None = Field(
        None, description="is the user to log in as: letters, digits, . _ - and @, no sign but _ first"
    )
    port: Port | None = Field(None, description="port of the SSH server; default 22")
    key: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="file of the private key; default: those of `ssh -G`, then the agent's"
    )
    jump: Annotated[str, Field(pattern=rf"^{HOP}(?:,{HOP})*$")] | None = Field(
        None, description="is the machine, or several with commas, to go through: [user@]host[:port]; none: go directly"
    )


class SshHost(SshWay):
    """Settings of one machine."""

    address: Name | None = Field(
        None, description="is the name or IPv4 address to connect to; default: what `ssh -G` says of the host"
    )


class SshSpec(SshWay):
    """Settings of all machines, and of some by name."""

    config: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="an ssh_config file to read in place of ~/.ssh/config"
    )
    known_hosts: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="a file of host keys to trust, beside vpipe's own and the user's"
    )
    connect_timeout: Annotated[float, Field(gt=0.0, le=600.0)] = Field(
        10.0, description="seconds to reach a machine and be let in, those in between included"
    )
    hosts: dict[str, SshHost] = Field(
        default_factory=dict, description="settings of single machines, by the name that machines gives them"
    )

    def misfits(self) -> Iterator[Misfit]:
        """Machines have names that can be ones."""
        for host in self.hosts:
            if not re.fullmatch(NAME, host):
                yield Misfit(f"holds {host!r}, which cannot be a machine", ("hosts",))

    def of(self, host: str) -> SshHost:
        """The settings of ``host``: its own, and for all else those of all machines."""
        own = self.hosts.get(host, SshHost())
        shared = {key: getattr(self, key) for key in SshWay.model_fields if getattr(own, key) is None}
        return own.model_copy(update=shared)
