"""One host: started, killed, cut off, brought back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

INIT = Path(__file__).with_name("init.sh")
START_LIMIT = 20.0
SSHD = """\
Port {port}
HostKey {folder}/host_key
PidFile none
UsePAM no
PermitRootLogin yes
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv TMPDIR=/var/tmp
Subsystem sftp internal-sftp
{extra}
"""


class Host:
    """A machine reached by SSH as ``root`` or ``ana``, with one key. Its folder is private to the testbed.

    Args:
        links: its addresses, each with the interface name it has there, the bridge, and the bridge's end of the cable.
        switch: process id of the network the bridges are in.
        lock: a descriptor held open as long as the host lives.
    """

    def __init__(self, name: str, folder: Path, links: list[tuple[str, str, str, str]], switch: int, lock: int) -> None:
        self.name, self.folder, self.links = name, folder, links
        self.address = links[0][0]
        self.port = 22
        self._switch, self._lock = switch, lock
        self._outer: subprocess.Popen[bytes] | None = None
        self.pid = 0

    @property
    def outer(self) -> int:
        """The process on this side of the host's namespaces; the host ends with it."""
        assert self._outer
        return self._outer.pid

    def start(self, *, port: int = 22, shell: str = "/bin/bash", extra: str = "", tied: bool = True) -> None:
        """Start it, fresh: nothing of an earlier life but its key.

        Args:
            extra: more lines of sshd_config.
            shell: the login shell of ``ana``.
            tied: whether it ends with this process.
        """
        self.port = port
        self._prepare(extra)
        command = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
        command += ["sh", str(INIT), self.name, str(self.folder), shell, *_kept()]
        if tied and shutil.which("setpriv"):
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        with (self.folder / "sshd.log").open("wb") as log:
            self._outer = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[self._lock], start_new_session=True
            )
        self.pid = int(until(self._children, f"{self.name} does not begin").split()[0])
        for address, interface, bridge, cable in self.links:
            self._connect(address, interface, bridge, cable)
        inside(self.pid, "link set lo up")
        assert self._outer.stdin
        self._outer.stdin.write(b"\n")
        self._outer.stdin.close()
        until(self._listens, f"sshd of {self.name} does not listen")

    def kill(self) -> None:
        """Take its power: kill -9 of its first process, and with it of all others. Idempotent."""
        if self._outer is None:
            return
        for pid in (self.pid, self._outer.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        self._outer.wait(10)
        self._outer = None
        for _, _, _, cable in self.links:  # the kernel does that too, a little later
            subprocess.run(["nsenter", "-t", str(self._switch), "-n", "ip", "link", "del", cable], capture_output=True)

    def cut(self) -> None:
        """Pull its cables: packets vanish both ways, nothing else changes."""
        for _, _, _, cable in self.links:
            inside(self._switch, f"link set {cable} down")

    def join(self) -> None:
        """Plug its cables in again."""
        for _, _, _, cable in self.links:
            inside(self._switch, f"link set {cable} up")

    def pids(self) -> dict[int, str]:
        """Its processes, by their number on this machine, with their command lines; its sshd is left out."""
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns" / "pid") == namespace:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return {pid: command for pid, command in found.items() if not command.startswith(("sshd:", "/usr/sbin/sshd"))}

    def logins(self) -> list[int]:
        """The processes of sshd that serve one connection of root each."""
        namespace, found = os.readlink(f"/proc/{self.pid}/ns/pid"), []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                own = os.readlink(entry / "ns" / "pid") == namespace
                if own and (entry / "cmdline").read_text().startswith("sshd: root"):
                    found.append(int(entry.name))
        return found

    def path(self, path: str) -> Path:
        """A path of the host as this machine sees it, private mounts included."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    def new_key(self) -> str:
        """Give it another host key, from its next start on; the public key."""
        key = self.folder / "host_key"
        for file in (key, key.with_suffix(".pub")):
            file.unlink(missing_ok=True)
        keygen(key)
        return key.with_suffix(".pub").read_text()

    def _prepare(self, extra: str) -> None:
        for name in ("root", "tmp"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(mode=0o711)
        (self.folder / "tmp").chmod(0o1777)
        ssh = self.folder / "root" / ".ssh"
        ssh.mkdir(mode=0o700)
        shutil.copy(self.folder.parent / "id.pub", ssh / "authorized_keys")
        settings = SSHD.format(port=self.port, folder=self.folder, extra=extra)
        (self.folder / "sshd_config").write_text(settings)

    def _connect(self, address: str, interface: str, bridge: str, cable: str) -> None:
        # The hardware address follows from the other: neighbours that remember an earlier life of this host are right.
        hardware = "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))
        peer = f"peer name {interface} address {hardware} netns {self.pid}"
        inside(self._switch, f"link add {cable} type veth {peer}")
        inside(self._switch, f"link set {cable} master {bridge} up")
        inside(self.pid, f"addr add {address}/25 dev {interface}", f"link set {interface} up")

    def _children(self) -> str:
        return Path(f"/proc/{self.outer}/task/{self.outer}/children").read_text()

    def _listens(self) -> bool:
        port = f":{self.port:04X} "
        assert self._outer
        if self._outer.poll() is not None:
            raise RuntimeError(f"{self.name} ended at its start: {(self.folder / 'sshd.log').read_text()}")
        lines = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()
        return any(port in line and line.split()[3] == "0A" for line in lines)


def _kept() -> list[str]:
    """Folders below /root that a host needs as they are: the Python that runs this, and what is tested."""
    needed = sorted({sys.base_prefix, sys.prefix, str(Path(__file__).parents[2])}, key=len)
    below = [path for path in needed if path.startswith("/root/")]
    return [path for path in below if not any(path.startswith(other + "/") for other in below)]


def inside(pid: int, *commands: str) -> None:
    """Run ``ip`` commands in the network of a process."""
    batch = "\n".join(commands).encode()
    done = subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", "-batch", "-"], input=batch, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"ip {'; '.join(commands)}: {done.stderr.decode()}")


def shape(pid: int, interface: str, megabits: int) -> None:
    """Limit what an interface of a process's network sends, by a token bucket."""
    words = f"tc qdisc replace dev {interface} root tbf rate {megabits}mbit burst 512kb latency 50ms"
    subprocess.run(["nsenter", "-t", str(pid), "-n", *words.split()], check=True)


def keygen(path: Path) -> None:
    """A new ed25519 key pair."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "testbed", "-f", str(path)], check=True)


def until(ready: Callable[[], str | bool], complaint: str) -> str:
    """Wait for what ``ready`` says, and give it back; at most START_LIMIT seconds."""
    end = time.monotonic() + START_LIMIT
    while not (found := ready()):
        if time.monotonic() > end:
            raise RuntimeError(f"{complaint} within {START_LIMIT:g} s")
        time.sleep(0.005)
    return str(found)
