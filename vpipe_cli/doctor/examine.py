"""Everything ``vpipe doctor`` finds out: facts of every host, judged; then what only several hosts together tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vpipe_cli.doctor import gather
from vpipe_cli.doctor.finding import Finding
from vpipe_cli.doctor.gather import Report
from vpipe_cli.doctor.judge import judge
from vpipe_cli.doctor.needs import Needs
from vpipe_cli.doctor.wants import needs_of
from vpipe_cli.onhost.send import NoPython
from vpipe_cli.transport.base import Transport
from worker.errors import PreflightError, UnreachableError, UntrustedHost, VpipeError
from worker.spec.cluster import ClusterSpec

FIREWALL = (
    "vpipe and torch use ports of the kernel's choosing (net.ipv4.ip_local_port_range) between the hosts: "
    "have the firewall let them through"
)


def examine(hosts: Mapping[str, Transport], spec: ClusterSpec, quick: bool = False) -> list[Finding]:
    """What is to be said of these hosts for this job, host by host in the order given.

    Args:
        hosts: connected already; those that are not reached are no business of this.
        quick: only the facts of each host, one round trip; not which hosts reach which.
    """
    return examine_for(hosts, {host: needs_of(spec, host) for host in hosts}, quick)


def examine_for(hosts: Mapping[str, Transport], needs: Mapping[str, Needs], quick: bool = False) -> list[Finding]:
    """``examine`` for needs that are known already."""
    answers = gather.facts(hosts, {host: needs[host].request() for host in hosts})
    reports = {host: answer for host, answer in answers.items() if isinstance(answer, Report)}
    found: list[Finding] = []
    for host, answer in answers.items():
        found += judge(host, answer, needs[host]) if isinstance(answer, Report) else [silent(host, answer)]
    found += together({host: report.facts for host, report in reports.items()}, needs)
    if not quick and len(reports) > 1:
        addresses = {host: _addresses(report.facts) for host, report in reports.items()}
        met = gather.ports({host: hosts[host] for host in reports}, addresses)
        found += ports(met, {host: report.facts for host, report in reports.items()})
    order = {host: place for place, host in enumerate(hosts)}
    return sorted(found, key=lambda finding: order[finding.host])


def refuse(findings: Iterable[Finding]) -> None:
    """Raise PreflightError with every finding that is a failure, each with its remedy; nothing if there is none."""
    failed = [finding for finding in findings if finding.verdict == "fail"]
    if failed:
        lines = [f"{each.host}: {each.check}: {each.fact}" for each in failed]
        remedies = dict.fromkeys(each.remedy for each in failed if each.remedy)
        raise PreflightError("\n".join(lines), "\n".join(remedies))


def silent(host: str, error: VpipeError) -> Finding:
    """A host that gave no facts."""
    if isinstance(error, UnreachableError):
        check = "key" if isinstance(error, UntrustedHost) else "reach"
        return Finding(host, check, error.message.removeprefix(f"{host}: "), "fail", error.hint)
    if isinstance(error, NoPython):
        return Finding(host, "python3", error.message.removeprefix(f"{host}: "), "fail", error.hint)
    remedy = error.hint or "the machine may be overloaded; try again"
    return Finding(host, "facts", error.message.removeprefix(f"{host}: "), "fail", remedy)


def together(facts: Mapping[str, dict[str, Any]], needs: Mapping[str, Needs]) -> Iterator[Finding]:
    """Differences between hosts that a pipeline over them would trip over."""
    machines = {host: each["system"].get("machine") for host, each in facts.items()}
    commonest = Counter(machines.values()).most_common(1)[0][0] if machines else None
    for host, machine in machines.items():
        if machine != commonest and machine and needs[host].container:
            remedy = "one image goes to all hosts, so they need one architecture"
            yield Finding(host, "architecture", f"{machine}, others {commonest}", "fail", remedy)
    names = Counter(each["system"].get("hostname") for each in facts.values())
    for host, each in facts.items():
        if names[each["system"].get("hostname")] > 1 and each["system"].get("hostname"):
            remedy = "two names in `machines` may be one machine; then its devices are counted twice"
            yield Finding(host, "hostname", f"{each['system']['hostname']}, as another host", "warn", remedy)


def ports(met: Mapping[str, dict[str, Any] | VpipeError], facts: Mapping[str, dict[str, Any]]) -> Iterator[Finding]:
    """Whether every host reaches every other one on a port of the kernel's choosing, and over which interface."""
    for host, answers in met.items():
        if isinstance(answers, VpipeError):
            yield Finding(host, "ports", f"could not be tried: {answers.message}", "warn")
            continue
        ways = {other: _way(answer) for other, answer in answers.items()}
        reached = {other: way for other, way in ways.items() if way is not None}
        by_interface: dict[str, list[str]] = {}
        for other, way in reached.items():
            by_interface.setdefault(_interface(facts[host], way["from"]), []).append(other)
        for interface, others in by_interface.items():
            yield Finding(host, "ports", f"reaches {_some(others)} over {interface}")
        for other, answer in answers.items():
            if other not in reached:
                yield _unreached(host, other, answer)


def _way(answer: dict[str, Any]) -> dict[str, Any] | None:
    """The quickest of the addresses that answered."""
    answered: Sequence[dict[str, Any]] = answer.get("answered", [])
    return min(answered, key=lambda way: float(way["seconds"]), default=None)


def _unreached(host: str, other: str, answer: dict[str, Any]) -> Finding:
    tried = "; ".join(f"{address}: {why}" for address, why in answer["failed"].items())
    what = f"does not reach {other} ({tried or 'it has no address of its own'})"
    return Finding(host, "ports", what, "fail", FIREWALL)


def _interface(facts: dict[str, Any], address: str) -> str:
    known = facts.get("interfaces")
    names = {each["address"]: each["name"] for each in known} if isinstance(known, list) else {}
    return f"{names.get(address, 'an unknown interface')} ({address})"


def _addresses(facts: dict[str, Any]) -> list[str]:
    known = facts.get("interfaces")
    return [each["address"] for each in known] if isinstance(known, list) else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
