"""Reach every host of a job and examine it; one that cannot be reached is a finding, not the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from vpipe_cli import machines
from vpipe_cli.doctor.examine import examine, silent
from vpipe_cli.doctor.finding import Finding
from vpipe_cli.remaining import every_slot
from vpipe_cli.transport.connect import Offer, connect, trust
from worker.errors import UnreachableError
from worker.spec.cluster import ClusterSpec


def visit(spec: ClusterSpec) -> list[Finding]:
    """All findings of all hosts of a job, in the order of ``machines``, spares behind them."""
    names = _reached(spec)
    with connect(names, spec.ssh, partial=True) as hosts:
        found = examine(hosts, spec)
        found += [silent(host, error) for host, error in hosts.errors.items()]
    order = {host: place for place, host in enumerate(names)}
    return sorted(found, key=lambda finding: order[finding.host])


def _reached(spec: ClusterSpec) -> list[str]:
    """The hosts that SSH, or nobody, has to reach: a job on Slurm goes through its login node alone."""
    if spec.engine == "slurm" and spec.slurm.login:
        return [spec.slurm.login]
    return machines.hosts(every_slot(spec))


def trust_hosts(spec: ClusterSpec, agree: Callable[[Offer], bool]) -> None:
    """Show ``agree`` every key that is not trusted yet, jump hosts first, and record those it says yes to.

    A host that does not answer is passed over: examining it tells.
    """
    refused: set[str] = set()

    def once(offer: Offer) -> bool:
        if offer.target.known_as in refused:
            return False
        agreed = agree(offer)
        if not agreed:
            refused.add(offer.target.known_as)
        return agreed

    for host in _reached(spec):
        if host != machines.HERE:
            with suppress(UnreachableError, TimeoutError):
                trust(host, spec.ssh, once)
