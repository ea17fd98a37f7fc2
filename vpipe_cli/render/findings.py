"""What doctor found: a table in which hosts of which the same is to be said share a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vpipe_cli.doctor.finding import Finding
from vpipe_cli.sanitize import clean

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}
ORDER = {"fail": 0, "warn": 1, "ok": 2}


def table(findings: Sequence[Finding]) -> RenderableType:
    """The findings, the bad ones last, where the eye is; below them what mends each."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    hosts = list(dict.fromkeys(finding.host for finding in findings))
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "check", "host", "fact"):
        shown.add_column(name, overflow="fold", no_wrap=name in ("", "check"))
    for finding, which in _alike(findings):
        row = [finding.check, _names(which, hosts), clean(finding.fact)]
        shown.add_row(Text(finding.verdict, style=STYLES[finding.verdict]), *map(Text, row))
    mends = [
        Text(f"  {check} on {_names(which, hosts)}: {clean(remedy)}") for check, remedy, which in _remedies(findings)
    ]
    return Group(shown, "", "what mends it:", *mends) if mends else shown


def document(findings: Sequence[Finding], seconds: float) -> dict[str, Any]:
    """The same for a program."""
    ok = all(finding.verdict != "fail" for finding in findings)
    return {"schema": 1, "ok": ok, "seconds": round(seconds, 2), "findings": [vars(finding) for finding in findings]}


def verdict(findings: Sequence[Finding]) -> str:
    """One line: how many hosts, and how they are."""
    hosts = len({finding.host for finding in findings})
    counts = {name: sum(finding.verdict == name for finding in findings) for name in ORDER}
    machines = f"{hosts} host{'s' if hosts != 1 else ''}"
    if counts["fail"]:
        return f"{machines}: {counts['fail']} of {len(findings)} checks failed; this job cannot run there"
    if counts["warn"]:
        return f"{machines}: this job can run there; {counts['warn']} of {len(findings)} checks deserve a look"
    return f"{machines}: all {len(findings)} checks are well"


def _alike(findings: Sequence[Finding]) -> list[tuple[Finding, list[str]]]:
    """Findings that differ in the host only, once, with their hosts; in the order of checks, failures last."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.check, finding.fact, finding.verdict), []).append(finding)
    checks = list(dict.fromkeys(finding.check for finding in findings))
    ordered = sorted(groups.values(), key=lambda group: (-ORDER[group[0].verdict], checks.index(group[0].check)))
    return [(group[0], list(dict.fromkeys(finding.host for finding in group))) for group in ordered]


def _remedies(findings: Sequence[Finding]) -> list[tuple[str, str, list[str]]]:
    """Check, remedy and hosts, warnings first, of all that is not well."""
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for finding in sorted(findings, key=lambda finding: -ORDER[finding.verdict]):
        if finding.verdict != "ok" and finding.remedy:
            groups.setdefault((finding.check, finding.remedy), {})[finding.host] = None
    return [(check, remedy, list(hosts)) for (check, remedy), hosts in groups.items()]


def _names(which: Sequence[str], hosts: Sequence[str]) -> str:
    if len(which) == len(hosts) > 1:
        return f"all {len(hosts)}"
    return clean(", ".join(which) if len(which) <= 4 else f"{', '.join(which[:3])} and {len(which) - 3} more")
