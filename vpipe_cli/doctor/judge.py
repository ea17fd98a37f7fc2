"""Facts of one host -> findings: pure functions, one for each thing that is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vpipe_cli.doctor.devices import busy, driver, gpus
from vpipe_cli.doctor.finding import Finding, Verdict
from vpipe_cli.doctor.gather import Report
from vpipe_cli.doctor.needs import Needs
from vpipe_cli.onhost.exposed import MEND
from vpipe_cli.render.text import size

MIB, GIB = 1 << 20, 1 << 30
OFFSET_LIMIT = 0.5
"""Seconds that two clocks may differ before their logs are merged in a wrong order."""
LEAST_PYTHON = (3, 10)
OPEN_FILES = 1024
SHARED_PER_RANK = 64 * MIB
NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "ceph", "fuse.sshfs", "fuse.glusterfs")

Facts = dict[str, Any]
Judge = Callable[[str, Facts, Needs], Iterator[Finding]]


def judge(host: str, report: Report, needs: Needs) -> list[Finding]:
    """Everything there is to say of one host."""
    found = [*system(host, report.facts, needs), *clock(host, report.offset)]
    for subject, judges in JUDGES.items():
        facts = report.facts.get(subject)
        if facts is None:
            continue
        if isinstance(facts, dict) and "error" in facts:
            found.append(Finding(host, subject, f"could not be found out: {facts['error']}", "warn"))
            continue
        for each in judges:
            found += each(host, facts if subject != "user_namespaces" else report.facts, needs)
    return found


def system(host: str, facts: Facts, needs: Needs) -> Iterator[Finding]:
    """The machine answers; whether others compute on it already."""
    here = facts["system"]
    if "error" in here:
        yield Finding(host, "system", f"could not be found out: {here['error']}", "warn")
        return
    what = f"python {here['python']}, Linux {here['kernel']} {here['machine']}, {here['cores']} cores"
    yield Finding(host, "system", f"{what}, {size(here['memory'])}")
    busy_cores = here["load"] > here["cores"] * 0.5 + 0.5
    remedy = "other work there slows every stage of the pipeline; `top` on it shows whose it is"
    load = f"load {here['load']:.1f} on {here['cores']} cores"
    yield Finding(host, "load", load, "warn", remedy) if busy_cores else Finding(host, "load", load)


def clock(host: str, offset: tuple[float, float]) -> Iterator[Finding]:
    """How far the host's clock is from this machine's: known to within the time that asking took."""
    least, most = offset
    nearest = 0.0 if least <= 0.0 <= most else min(offset, key=abs)
    if abs(nearest) <= OFFSET_LIMIT:
        yield Finding(host, "clock", f"within {max(abs(least), abs(most)):.1f} s of this machine's")
        return
    how = "ahead of" if nearest > 0 else "behind"
    remedy = "logs of several hosts are merged by their clocks; let chrony or ntpd keep it (`timedatectl` tells)"
    yield Finding(host, "clock", f"{abs(nearest):.1f} s {how} this machine's", "warn", remedy)


def container(host: str, facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Apptainer is there, and new enough."""
    if facts["program"] is None:
        remedy = "ask for the package `apptainer` there, or leave `container` out of cluster.yml"
        yield Finding(host, "apptainer", "neither apptainer nor singularity on the PATH", "fail", remedy)
        return
    version = facts["version"] or "of unknown version"
    what = f"{facts['name']} {version}"
    if facts["name"] == "singularity" and _numbers(version) < (3, 8):
        yield Finding(host, "apptainer", what, "fail", "apptainer 1.1 or newer is needed")
    elif facts["name"] == "apptainer" and _numbers(version) < (1, 1):
        yield Finding(host, "apptainer", what, "warn", "vpipe is tried with 1.1 and newer")
    else:
        yield Finding(host, "apptainer", what)


def namespaces(host: str, facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Whether a container can start without root, and mount its image without unpacking it."""
    inside, has = facts["user_namespaces"], facts["container"]
    if not needs.container or not isinstance(has, dict) or not has.get("program"):
        return
    if inside["allowed"] and not inside["apparmor"]:
        yield Finding(host, "user namespaces", "allowed")
    elif has["setuid"]:
        yield Finding(host, "user namespaces", "not allowed, but apptainer is installed setuid")
    else:
        verdict: Verdict = "warn" if inside["allowed"] else "fail"
        why = "AppArmor restricts them" if inside["apparmor"] else inside["why"] or "not allowed"
        remedy = (
            "ask the admin for the package `apptainer-suid`, or for user namespaces (user.max_user_namespaces > 0, "
            "and kernel.apparmor_restrict_unprivileged_userns=0 where that exists)"
        )
        yield Finding(host, "user namespaces", why, verdict, remedy)
    if has["fuse"] or has["setuid"]:
        yield Finding(host, "fuse", "images can be mounted")
    else:
        remedy = "without /dev/fuse every rank unpacks the image into TMPDIR first; ask for it to be readable"
        yield Finding(host, "fuse", "/dev/fuse cannot be opened", "warn", remedy)


def worker(host: str, facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Without a container, the host's own Python must have what ranks import."""
    if facts["python"] is None:
        remedy = "name one that is there (`python: ...` in cluster.yml), or a container"
        yield Finding(host, "worker", f"there is no program {facts['program']}", "fail", remedy)
        return
    missing = [name for name in ("torch", "numpy", "pydantic") if facts.get(name) is None]
    version = tuple(map(int, facts["python"].split(".")[:2]))
    what = f"{facts['program']} {facts['python']}"
    if version < LEAST_PYTHON:
        yield Finding(
            host, "worker", f"{what} is too old for ranks", "fail", "use Python 3.10 or newer, or a container"
        )
    elif missing:
        install = f"`{facts['program']} -m pip install {' '.join(missing)}` there"
        remedy = f"name an interpreter that has them (`python: ...` in cluster.yml), or a container; or {install}"
        yield Finding(host, "worker", f"{what} has no {', no '.join(missing)}", "fail", remedy)
    else:
        yield Finding(host, "worker", f"{what}, torch {facts['torch']}")


def data(host: str, facts: Facts, needs: Needs) -> Iterator[Finding]:
    """What the first stage reads is there."""
    for key, path in needs.reads:
        if facts[path]:
            yield Finding(host, "data", f"{key}: {path}")
        else:
            remedy = "the first stage runs there and reads it; copy it there, or name where it is"
            yield Finding(host, "data", f"{key}: no such file or folder: {path!r}", "fail", remedy)


ROOM = {"runs": (100 * MIB, 2 * GIB), "images": (0, 2 * GIB), "tmp": (10 * MIB, 500 * MIB)}
"""Bytes below which a place cannot be worked with, and below which it soon cannot."""


def disks(host: str, facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Room for runs, images and temporary files, and for shared memory."""
    for name, (least, enough) in ROOM.items():
        if name == "images" and not needs.container:
            continue
        least = max(least, needs.image_bytes or 0) if name == "images" else least
        yield _disk(host, f"disk {name}", facts[name], least, enough)
    room, wanted = facts["shm"], SHARED_PER_RANK * needs.ranks
    what = f"{size(room['free'])} free of {size(room['total'])} in /dev/shm"
    if room["free"] < wanted and needs.ranks > 1:
        remedy = (
            f"{needs.ranks} ranks there want {size(wanted)}: remove old files in /dev/shm, or have it mounted larger"
        )
        yield Finding(host, "shared memory", what, "warn", remedy)
    else:
        yield Finding(host, "shared memory", what)


def _disk(host: str, check: str, room: Facts, least: int, enough: int) -> Finding:
    what = f"{size(room['free'])} free for {room['path']}"
    if room.get("exposed"):
        return Finding(host, check, f"others could change {room['path']}: {room['exposed']}", "fail", MEND)
    if not room["writable"]:
        return Finding(host, check, f"{room['mount']} may not be written to", "fail", _other_place(check))
    if room["free"] < least:
        return Finding(host, check, f"{what}, needs {size(least)}", "fail", _other_place(check))
    if room["files_free"] is not None and room["files_free"] < 1000:
        return Finding(host, check, f"{what}, but only {room['files_free']} more files", "fail", _other_place(check))
    if room["free"] < enough:
        return Finding(host, check, what, "warn", _other_place(check))
    if room["type"] in NETWORK and check == "disk runs":
        remedy = "set VPIPE_HOME there to a disk of the machine itself: locks and logs over a network file system lag"
        return Finding(host, check, f"{what}, on {room['type']}", "warn", remedy)
    return Finding(host, check, what)


def _other_place(check: str) -> str:
    name = "TMPDIR" if check.endswith("tmp") else "VPIPE_HOME"
    mends = {
        "disk runs": "`vpipe rm` removes old runs; ",
        "disk images": "`vpipe image prune` removes unused images; ",
        "disk tmp": "",
    }
    return f"{mends[check]}{name} there can name another place"


def limits(host: str, facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Open files, and memory that may be pinned."""
    files = facts["nofile"][0]
    if 0 <= files < OPEN_FILES:
        hard = facts["nofile"][1]
        remedy = f"raise nofile in /etc/security/limits.conf there (the hard limit is {hard})"
        yield Finding(host, "limits", f"{files} open files", "warn", remedy)
    else:
        yield Finding(host, "limits", f"{'any number of' if files < 0 else files} open files")


def linger(host: str, facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Whether a run outlives the SSH session that started it."""
    if facts["kills"] and not facts["lingers"]:
        remedy = "`loginctl enable-linger` there keeps them"
        yield Finding(host, "linger", "systemd kills a user's processes at logout", "fail", remedy)
    else:
        yield Finding(host, "linger", "processes outlive the session that started them")


def infiniband(host: str, facts: list[dict[str, str]], needs: Needs) -> Iterator[Finding]:
    """Ports of fast networks, if there are any."""
    for port in facts:
        name = f"{port['device']} port {port['port']}: {port['state'] or 'unknown'}"
        if port["state"] == "ACTIVE":
            yield Finding(host, "infiniband", name)
        else:
            remedy = "NCCL falls back to TCP, which is slower; `ibstat` there tells more"
            yield Finding(host, "infiniband", name, "warn", remedy)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.replace("-", ".").replace("+", ".").replace("~", ".").split(".")
    return tuple(int(part) for part in parts[:3] if part.isdigit()) or (1 << 30,)


JUDGES: dict[str, list[Callable[[str, Any, Needs], Iterator[Finding]]]] = {
    "container": [container],
    "user_namespaces": [namespaces],
    "worker": [worker],
    "paths": [data],
    "gpus": [gpus, driver, busy],
    "disks": [disks],
    "limits": [limits],
    "linger": [linger],
    "infiniband": [infiniband],
}
"""By the part of the facts that each looks at."""
