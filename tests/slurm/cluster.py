"""A real Slurm on this machine: munged, slurmctld and a slurmd for every node, in folders and on ports of their own.

All nodes are this machine under several names. There is no accounting, as on many clusters, but in ``accounting``.
Nothing of an installed Slurm is touched: programs find this one by SLURM_CONF.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.rig import wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
PreemptType=preempt/none
ReturnToService=2
MpiDefault=none
SlurmdTimeout=10
InactiveLimit=0
KillWait=10
MinJobAge=300
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} CPUs=2 State=UNKNOWN
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE State=UP
"""


def lacks(*more: str) -> str:
    """What this machine lacks to run Slurm, and ``more`` programs; empty if nothing."""
    if os.geteuid() != 0:
        return "root"
    return next((name for name in (*PROGRAMS, *more) if shutil.which(name, path=PATH) is None), "")


class Slurm:
    """Nodes n1, n2 ... below ``folder``, ready for jobs.

    Args:
        more: lines of slurm.conf.
    Raises AssertionError, with what the daemons last wrote, when they are not within a minute.
    """

    def __init__(self, folder: Path, nodes: int = 2, more: str = "") -> None:
        self.folder = folder
        self.nodes = [f"n{number + 1}" for number in range(nodes)]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("munge", "state", *(f"spool-{node}" for node in self.nodes)):
            (folder / name).mkdir(mode=0o755)
        self.conf = folder / "slurm.conf"
        self.conf.write_text(_conf(folder, nodes) + more)
        self.env = {"SLURM_CONF": str(self.conf), "PATH": PATH}
        try:
            self._munged()
            self._accounting()
            self._start("slurmctld", "-D")
            for node in self.nodes:
                self.start_node(node)
            self._wait_for_nodes()
        except BaseException:
            self.close()
            raise

    def states(self) -> list[str]:
        """The state of every node."""
        done = self._ask("sinfo", "--noheader", "-N", "-o", "%N %T")
        return [line.split()[1] for line in sorted(set(done.splitlines()))]

    def jobs(self) -> list[str]:
        """Ids of the jobs that have not ended."""
        return self._ask("squeue", "--noheader", "-o", "%i").split()

    def run(self, *command: str) -> str:
        """What a command of Slurm prints. Raises CalledProcessError."""
        done = subprocess.run(command, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._start(node, "-D", "-N", node, program="slurmd")

    def kill_node(self, node: str) -> None:
        """Kill the slurmd of a node; what it has started lives on, until Slurm sees to it."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()

    def clear(self) -> None:
        """Cancel all jobs and wait until every node is free."""
        for node in self.nodes:
            if node not in self._daemons:
                self.start_node(node)
        if jobs := self.jobs():
            self.run("scancel", *jobs)
        wait_for(lambda: not self.jobs() and self.states() == ["idle"] * len(self.nodes), 90)

    def close(self) -> None:
        """End every daemon that was started here."""
        for daemon in reversed(self._daemons.values()):
            daemon.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 15
        for daemon in reversed(self._daemons.values()):
            try:
                daemon.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()

    def _ask(self, *command: str) -> str:
        """What a command prints; nothing where it fails, as while the daemons start."""
        done = subprocess.run(command, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""

    def _wait_for_nodes(self) -> None:
        deadline = time.monotonic() + 60
        while (states := self.states()) != ["idle"] * len(self.nodes):
            ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            assert not ended and time.monotonic() < deadline, f"nodes {states}, ended {ended}\n{self._last_words()}"

    def _last_words(self) -> str:
        """The last lines of every daemon: its port may have gone to another program meanwhile."""
        logs = sorted([*self.folder.glob("*.out"), *self.folder.glob("*.log"), self.folder / "munge" / "log"])
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in logs if log.exists())

    def _munged(self) -> None:
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        places = [f"--{name}={self.folder}/munge/{name.removesuffix('-file')}" for name in ("pid-file", "log-file")]
        places += [f"--socket={self.folder}/munge/socket", f"--key-file={key}", f"--seed-file={self.folder}/munge/seed"]
        self._start("munged", "--foreground", "--force", *places)
        wait_for((self.folder / "munge" / "socket").exists, 30)

    def _accounting(self) -> None:
        """What slurmctld needs before it starts, where it keeps accounts."""

    def _start(self, name: str, *arguments: str, program: str = "") -> None:
        command = [program or name, *arguments]
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                command,
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _conf(folder: Path, nodes: int) -> str:
    host = socket.gethostname().partition(".")[0]
    port, first = free_ports(1), free_ports(nodes)
    names, ports = f"n[1-{nodes}]", f"[{first}-{first + nodes - 1}]"
    return CONF.format(host=host, port=port, folder=folder, nodes=names, ports=ports)


def free_ports(count: int) -> int:
    """The first of some ports in a row that nobody listens on."""
    while True:
        first = 20000 + secrets.randbelow(10000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def main(arguments: Sequence[str]) -> int:
    """Run a Slurm below a folder until Enter is pressed, to try things out by hand."""
    slurm = Slurm(Path(arguments[0]).absolute())
    print(f"export SLURM_CONF={slurm.conf}", flush=True)
    try:
        sys.stdin.read()
    finally:
        slurm.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
