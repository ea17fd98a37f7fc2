"""A testbed: hosts on a switch of their own, this machine as their client, a key that opens all of them."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.testbed.host import Host, inside, keygen, shape, until

POOL = Path("/tmp/vpipe-testbed")  # wherever TMPDIR points: numbers and addresses are the whole machine's
NETWORK = "10.213"
MOST = 100
PROGRAMS = {"/usr/sbin/sshd": "openssh-server", "ssh": "openssh-client", "ip": "iproute2"}
PROGRAMS |= dict.fromkeys(("unshare", "nsenter", "setpriv"), "util-linux")

ENTRY = """\
Host {name}
  HostName {address}
  Port {port}
  {more}
"""
DEFAULTS = """\
Host *
  User root
  IdentityFile {folder}/id
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile none
"""


def lacks() -> str:
    """What this machine lacks to hold a testbed; empty if nothing."""
    if os.geteuid() != 0:
        return "root"
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if not missing and subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode:
        missing = ["the right to make namespaces"]
    return ", ".join(dict.fromkeys(missing))


class Testbed:
    """Hosts ``h1``, ``h2`` ... on addresses that no other testbed on this machine has.

    Hosts are reached directly; ``behind_bastion`` makes others, ``i1`` ..., that only ``bastion`` reaches.

    Args:
        tied: whether the hosts end with this process.
    """

    __test__ = False  # no class of tests, whatever pytest makes of its name

    def __init__(self, *, tied: bool = True) -> None:
        self._tied = tied
        self.number, self._lock = _claim()
        self.folder = POOL / str(self.number)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o711)
        self.key = self.folder / "id"
        self.known_hosts = self.folder / "known_hosts"
        self.ssh_config = self.folder / "ssh_config"
        self._client = f"vpt{self.number}"
        self._hosts: dict[str, Host] = {}
        self._used: set[str] = set()
        keygen(self.key)
        self._switch = self._start_switch()
        self.write_files()

    def take(self, count: int, **options: Any) -> list[Host]:
        """The first ``count`` hosts, running. ``options`` are those of ``Host.start``."""
        wanted = [self._outer(f"h{index + 1}", index) for index in range(count)]
        return self._run(wanted, options)

    def behind_bastion(self, count: int, **options: Any) -> tuple[Host, list[Host]]:
        """A bastion, and ``count`` hosts that this machine cannot reach but through it. ``options`` go to the hosts."""
        bastion = self._outer("bastion", MOST, inner=True)
        inner = [self._inner(f"i{index + 1}", index) for index in range(count)]
        self._run([bastion], {})
        return bastion, self._run(inner, options)

    def cut_client(self) -> None:
        """Pull this machine's own cable to the hosts."""
        inside(self._switch, f"link set {self._client}s down")

    def join_client(self) -> None:
        """Plug it in again; the kernel takes up to a second to see it."""
        inside(self._switch, f"link set {self._client}s up")
        state = Path(f"/sys/class/net/{self._client}/operstate")
        until(lambda: state.read_text() == "up\n", "the client's cable")
        inside(os.getpid(), f"neigh flush dev {self._client}")

    def reset(self) -> None:
        """Everything as at first: hosts that were used are gone and start afresh when taken again."""
        self.join_client()
        for name in self._used:
            self._hosts[name].kill()
            shutil.rmtree(self._hosts.pop(name).folder, ignore_errors=True)
        self._used.clear()
        # The kernel remembers for a while that nobody answered at the address of a host that was killed.
        subprocess.run(["ip", "neigh", "flush", "dev", self._client], stderr=subprocess.DEVNULL)
        self.write_files()

    def close(self) -> None:
        """End all hosts and give the addresses back."""
        self.reset()
        unplug(self.number)
        self._switch_process.kill()
        self._switch_process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def processes(self) -> list[int]:
        """The processes with which everything ends."""
        return [*(self._hosts[name].outer for name in self._used), self._switch]

    def write_files(self) -> None:
        """``ssh_config`` and ``known_hosts`` for this machine, ``hosts`` for the hosts, as they are now."""
        hosts = self._hosts.values()
        entries = []
        for host in hosts:
            more = f"ProxyJump {self._hosts['bastion'].address}" if host.name.startswith("i") else ""
            entries.append(ENTRY.format(name=host.name, address=host.address, port=host.port, more=more))
        self.ssh_config.write_text("".join(entries) + DEFAULTS.format(folder=self.folder))
        lines = []
        for host in hosts:
            name = host.address if host.port == 22 else f"[{host.address}]:{host.port}"
            lines.append(f"{name} {(host.folder / 'host_key.pub').read_text()}")
        self.known_hosts.write_text("".join(lines))

    def _outer(self, name: str, index: int, inner: bool = False) -> Host:
        links = [(f"{NETWORK}.{self.number}.{2 + index}", "eth0", "outer", f"{name}o")]
        if inner:
            links.append((f"{NETWORK}.{self.number}.129", "eth1", "inner", f"{name}i"))
        return self._host(name, links)

    def _inner(self, name: str, index: int) -> Host:
        return self._host(name, [(f"{NETWORK}.{self.number}.{130 + index}", "eth0", "inner", f"{name}i")])

    def _host(self, name: str, links: list[tuple[str, str, str, str]]) -> Host:
        if name not in self._hosts:
            folder = self.folder / name
            folder.mkdir(mode=0o711)
            self._hosts[name] = Host(name, folder, links, self._switch, self._lock)
            self._hosts[name].new_key()
        return self._hosts[name]

    def _run(self, wanted: list[Host], options: dict[str, Any]) -> list[Host]:
        """Start those of the hosts that are not running; with options, those that are start again."""
        for host in wanted:
            host.port = options.get("port", 22)
        names = "".join(f"{host.address} {host.name}\n" for host in self._hosts.values())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        fresh = [host for host in wanted if options or host.name not in self._used]
        for host in fresh:
            self._used.add(host.name)
            host.kill()
            host.start(tied=self._tied, **options)
        self.write_files()
        return wanted

    def throttle(self, hosts: Sequence[Host], megabits: int) -> None:
        """Let every cable carry no more than so many megabits a second, in each direction."""
        shape(os.getpid(), self._client, megabits)
        for host in hosts:
            for _, interface, _, cable in host.links:
                shape(host.pid, interface, megabits)
                shape(self._switch, cable, megabits)

    def _start_switch(self) -> int:
        command = ["unshare", "--net", "sleep", "infinity"]
        if self._tied:
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        self._switch_process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[self._lock], start_new_session=True
        )
        pid = self._switch_process.pid
        while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            if self._switch_process.poll() is not None:
                raise RuntimeError("this machine allows no network namespaces")
        client = self._client
        unplug(self.number)
        inside(
            pid, "link add outer type bridge", "link add inner type bridge", "link set outer up", "link set inner up"
        )
        inside(pid, f"link add {client}s type veth peer name {client} netns {os.getpid()}")
        inside(pid, f"link set {client}s master outer up")
        base = f"{NETWORK}.{self.number}"
        # The whole range leads to the outer bridge, where nobody answers for the hosts on the inner one.
        inside(os.getpid(), f"addr add {base}.1/24 dev {client}", f"link set {client} up")
        return pid


def unplug(number: int) -> None:
    """Take away the client's end of a testbed's cable; the kernel does so too, a little after its processes ended."""
    subprocess.run(["ip", "link", "del", f"vpt{number}"], stderr=subprocess.DEVNULL)


def _claim() -> tuple[int, int]:
    """A number that no living testbed has, and the lock that holds it; every process of the testbed inherits it."""
    POOL.mkdir(mode=0o711, exist_ok=True)
    for number in range(1, 255):
        lock = os.open(POOL / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return number, lock
    raise RuntimeError(f"all address ranges of {POOL} are taken")
