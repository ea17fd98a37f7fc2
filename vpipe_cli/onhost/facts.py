"""What a machine is: everything ``vpipe doctor`` judges, as one JSON object. It changes nothing on the machine.

A fact that cannot be found out is an object ``{"error": why}`` in its place. Python 3.8, standard library only.
"""

from __future__ import annotations

import ctypes
import getpass
import json
import os
import platform
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Optional

from vpipe_cli.onhost.exposed import exposed
from vpipe_cli.onhost.program import vpipe_root

BEGAN = time.time()
CLONE_NEWUSER = 0x10000000
SECONDS = 6.0  # that any one command may take


def main(request: Dict[str, Any]) -> None:
    """Answer with all facts. ``request``: ``container`` (bool), ``python`` (a path, or null), ``paths``."""
    namespaces = user_namespaces()  # before any thread: it forks
    root = vpipe_root(request.get("root"))
    found: Dict[str, Any] = {"user_namespaces": namespaces, "root": root}
    wanted: Dict[str, Callable[[], Any]] = {
        "system": system,
        "disks": lambda: disks(root),
        "limits": limits,
        "linger": linger,
        "interfaces": interfaces,
        "infiniband": infiniband,
        "gpus": gpus,
        "container": container if request.get("container") else lambda: None,
        "worker": lambda: worker(request["python"]) if request.get("python") else None,
        "paths": lambda: {path: os.path.exists(path) for path in request.get("paths", [])},
    }
    threads = [threading.Thread(target=fill, args=(found, name, find), daemon=True) for name, find in wanted.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SECONDS)
    for name in wanted:
        found.setdefault(name, {"error": "took longer than %g s" % (2 * SECONDS)})
    found["clock"] = {"began": BEGAN, "ended": time.time()}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # not waiting for what did not answer in time


def fill(found: Dict[str, Any], name: str, find: Callable[[], Any]) -> None:
    """Find one fact out, or why it cannot be."""
    try:
        found[name] = find()
    except Exception as error:
        found[name] = {"error": "%s: %s" % (type(error).__name__, error)}


def said(*argv: str) -> str:
    """What a command prints. Raises OSError if there is none, CalledProcessError if it fails."""
    ended = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=SECONDS, check=False
    )
    if ended.returncode:
        last = (ended.stderr or ended.stdout).decode(errors="replace").strip().splitlines()
        raise OSError("%s: %s" % (argv[0], last[-1] if last else "exit status %d" % ended.returncode))
    return ended.stdout.decode(errors="replace").strip()


def text(path: str) -> str:
    """A small file; empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def system() -> Dict[str, Any]:
    """Who, which kernel, how much of it."""
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB", text("/proc/meminfo"), re.M))
    return {
        "hostname": socket.gethostname(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "user": getpass.getuser(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "memory": int(memory.get("MemTotal", 0)) * 1024,
        "memory_free": int(memory.get("MemAvailable", 0)) * 1024,
    }


def disks(root: str) -> Dict[str, Any]:
    """Room where runs and images are kept, where temporary files go, and in shared memory; who else may get at it."""
    temporary = os.environ.get("APPTAINER_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    places = {"runs": root + "/runs", "images": root + "/images", "tmp": temporary, "shm": "/dev/shm"}
    found = {name: disk(path) for name, path in places.items()}
    for name in ("runs", "images"):
        found[name]["exposed"] = exposed(places[name])
    return found


def disk(path: str) -> Dict[str, Any]:
    """Bytes free and in all, where ``path`` is or would be made; whether this user may write there."""
    there = path
    while not os.path.exists(there):
        there = os.path.dirname(there)
    room = os.statvfs(there)
    return {
        "path": path,
        "free": room.f_bavail * room.f_frsize,
        "total": room.f_blocks * room.f_frsize,
        "files_free": room.f_favail if room.f_files else None,
        "writable": os.access(there, os.W_OK | os.X_OK),
        "mount": there,
        "type": filesystem(there),
    }


def filesystem(path: str) -> str:
    """The type of the file system that a path is on."""
    real, best, kind = os.path.realpath(path), "", ""
    for line in text("/proc/mounts").splitlines():
        point, found = line.split()[1:3]
        point = point.replace("\\040", " ")
        if len(point) >= len(best) and (real == point or real.startswith(point.rstrip("/") + "/")):
            best, kind = point, found
    return kind


def limits() -> Dict[str, Any]:
    """Soft limits of a process; -1 where there is none."""
    names = {"nofile": resource.RLIMIT_NOFILE, "memlock": resource.RLIMIT_MEMLOCK, "nproc": resource.RLIMIT_NPROC}
    return {name: list(resource.getrlimit(number)) for name, number in names.items()}


def linger() -> Dict[str, Any]:
    """Whether systemd ends a user's processes at logout, and whether this user may linger."""
    if not os.path.isdir("/run/systemd/system"):
        return {"systemd": False, "kills": False, "lingers": True}
    bus = "org.freedesktop.login1"
    try:
        kills = said("busctl", "get-property", bus, "/org/freedesktop/login1", bus + ".Manager", "KillUserProcesses")
    except (OSError, subprocess.SubprocessError):
        given = re.findall(r"^\s*KillUserProcesses\s*=\s*(\w+)", text("/etc/systemd/logind.conf"), re.M)
        kills = "b true" if given and given[-1].lower() in ("yes", "true", "1", "on") else "b false"
    lingers = os.path.exists("/var/lib/systemd/linger/" + getpass.getuser())
    return {"systemd": True, "kills": kills.endswith("true"), "lingers": lingers}


def interfaces() -> List[Dict[str, Any]]:
    """Every interface with an IPv4 address that another machine could reach."""
    import fcntl
    import struct

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
            except OSError:
                continue
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                mtu = text("/sys/class/net/%s/mtu" % name)
                found.append({"name": name, "address": address, "mtu": int(mtu) if mtu.isdigit() else None})
    return found


def infiniband() -> List[Dict[str, str]]:
    """InfiniBand and RoCE ports, and whether they are up."""
    found = []
    top = "/sys/class/infiniband"
    for device in sorted(os.listdir(top)) if os.path.isdir(top) else []:
        ports = os.path.join(top, device, "ports")
        for port in sorted(os.listdir(ports)) if os.path.isdir(ports) else []:
            state = text(os.path.join(ports, port, "state")).partition(": ")[2]
            found.append({"device": device, "port": port, "state": state})
    return found


def gpus() -> Dict[str, Any]:
    """NVIDIA GPUs, their driver, and who uses them."""
    if not shutil.which("nvidia-smi"):
        return {"driver": None, "devices": [], "processes": []}
    fields = "index,uuid,name,memory.total,memory.used,driver_version,ecc.errors.uncorrected.volatile.total"
    rows = [row.split(", ") for row in query("gpu", fields)]
    newest = re.search(r"CUDA Version:\s*([\d.]+)", said("nvidia-smi"))
    index = {row[1]: int(row[0]) for row in rows}
    users = [row.split(", ") for row in query("compute-apps", "gpu_uuid,pid,used_memory,process_name")]
    return {
        "driver": rows[0][5] if rows else None,
        "cuda": newest.group(1) if newest else None,
        "devices": [
            {"index": int(row[0]), "name": row[2], "total": mib(row[3]), "used": mib(row[4]), "ecc": number(row[6])}
            for row in rows
        ],
        "processes": [
            {
                "gpu": index.get(row[0]),
                "pid": number(row[1]),
                "used": mib(row[2]),
                "name": row[3],
                "user": owner(row[1]),
            }
            for row in users
            if len(row) >= 4
        ],
    }


def query(what: str, fields: str) -> List[str]:
    """The rows that nvidia-smi answers."""
    answer = said("nvidia-smi", "--query-%s=%s" % (what, fields), "--format=csv,noheader,nounits")
    return [line for line in answer.splitlines() if line.strip()]


def number(word: str) -> Optional[int]:
    """A whole number, or None for ``[N/A]``."""
    return int(word) if word.strip().isdigit() else None


def mib(word: str) -> Optional[int]:
    """Bytes of a number of MiB."""
    count = number(word)
    return None if count is None else count << 20


def owner(pid: str) -> Optional[str]:
    """The user of a process, if it can be seen from here."""
    import pwd

    try:
        uid = os.stat("/proc/%d" % int(pid)).st_uid
        return pwd.getpwuid(uid).pw_name
    except (OSError, ValueError, KeyError):
        return None


def container() -> Dict[str, Any]:
    """Apptainer, or its older name, and what it needs to run without root."""
    program = shutil.which("apptainer") or shutil.which("singularity")
    if program is None:
        return {"program": None}
    version = re.search(r"(\d+\.\d+[\w.+~-]*)", said(program, "--version"))
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(program)))
    starters = [
        os.path.join(folder, "apptainer/bin/starter-suid")
        for folder in (prefix + "/libexec", "/usr/libexec", "/usr/lib/x86_64-linux-gnu", "/usr/local/libexec")
    ]
    return {
        "program": program,
        "name": os.path.basename(program),
        "version": version.group(1) if version else None,
        "setuid": any(os.path.exists(path) and os.stat(path).st_mode & stat.S_ISUID for path in starters),
        "fuse": os.access("/dev/fuse", os.R_OK | os.W_OK),
    }


def user_namespaces() -> Dict[str, Any]:
    """Whether a process of this user may enter a user namespace: tried in a child, not guessed."""
    try:
        child = os.fork()
        if child == 0:
            failed = ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER)
            os._exit(ctypes.get_errno() if failed else 0)
        code = os.waitpid(child, 0)[1] >> 8
    except OSError as error:
        return {"error": str(error)}
    restricted = text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" and os.getuid() != 0
    return {"allowed": code == 0, "why": os.strerror(code) if code else "", "apparmor": restricted}


def worker(python: str) -> Dict[str, Any]:
    """What ranks without a container would run with: that interpreter, and the versions of what it must have."""
    program = shutil.which(python)
    if program is None:
        return {"program": python, "python": None}
    code = (
        "import importlib.metadata as m, json, platform\n"
        "def v(n):\n"
        "    try: return m.version(n)\n"
        "    except m.PackageNotFoundError: return None\n"
        "print(json.dumps({'python': platform.python_version(), **{n: v(n) for n in %r}}))"
    ) % (["torch", "numpy", "pydantic", "tokenizers", "safetensors"],)
    found: Dict[str, Any] = json.loads(said(python, "-c", code))
    return {"program": program, **found}
