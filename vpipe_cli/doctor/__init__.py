"""Can these machines run this job? Facts gathered on all hosts at once, judged here by pure functions.

The interface, for ``vpipe doctor`` and for a launch that wants to refuse early::

    findings = examine(hosts, spec, quick=True)     # one round trip per host, all hosts at once, seconds at most
    refuse(findings)                                # raises PreflightError (104) with every "fail" in it

``quick`` leaves out what needs more than that one round trip: the ports between every pair of hosts.
"""

from __future__ import annotations

from vpipe_cli.doctor.examine import examine, refuse
from vpipe_cli.doctor.finding import Finding, Verdict

__all__ = ["Finding", "Verdict", "examine", "refuse"]
