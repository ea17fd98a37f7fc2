"""The hosts that other tests stand on: apart from each other, killed and cut for real, gone without a trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.testbed.host import Host, until
from tests.testbed.network import Testbed

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 22), 3)
except OSError as error:
    print("no", type(error).__name__)
else:
    print("yes")
"""
UP = """
from tests.testbed.network import Testbed
testbed = Testbed()
testbed.take(2)
print(f"vpt{testbed.number}", *testbed.processes(), flush=True)
input()
"""


def ssh(testbed: Testbed, host: str, *command: str) -> str:
    argv = ["ssh", "-F", str(testbed.ssh_config), "-o", "ConnectTimeout=5", host, *command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


def reaches(testbed: Testbed, host: str, other: Host) -> bool:
    return ssh(testbed, host, f"{sys.executable} -c '{CONNECT}' {other.address}").strip() == "yes"


def test_hosts_have_names_homes_and_processes_of_their_own(testbed: Testbed) -> None:
    testbed.take(2)
    ssh(testbed, "h1", "touch /root/mine /var/tmp/mine /dev/shm/mine; sleep 100 >/dev/null 2>&1 &")
    assert ssh(testbed, "h2", "hostname; ls /root /var/tmp /dev/shm; pgrep sleep || true").split() == [
        "h2",
        "/dev/shm:",
        "/root:",
        "/var/tmp:",
    ]
    assert list(testbed.take(2)[0].pids().values()) == ["sleep 100"]


def test_a_test_gets_fresh_hosts(testbed: Testbed) -> None:
    (host,) = testbed.take(1)
    host.path("/root/left").write_text("")
    testbed.reset()
    (host,) = testbed.take(1)
    assert not host.path("/root/left").exists()


def test_killed_and_cut_hosts(testbed: Testbed) -> None:
    _, second, third = testbed.take(3)
    second.kill()
    third.cut()
    assert not reaches(testbed, "h1", second) and not reaches(testbed, "h1", third)
    third.join()
    second.start()
    assert reaches(testbed, "h1", second) and reaches(testbed, "h1", third)


def test_hosts_talk_while_the_client_is_cut(testbed: Testbed) -> None:
    first, second = testbed.take(2)
    question = ["nsenter", "-t", str(first.pid), "-n", sys.executable, "-c", CONNECT, second.address]
    testbed.cut_client()
    assert subprocess.run(question, capture_output=True, text=True).stdout == "yes\n"
    testbed.join_client()
    assert ssh(testbed, "h1", "echo back") == "back\n"


def test_only_the_bastion_reaches_the_hosts_behind_it(testbed: Testbed) -> None:
    _, (inner,) = testbed.behind_bastion(1)
    argv = [sys.executable, "-c", CONNECT, inner.address]
    assert subprocess.run(argv, capture_output=True, text=True).stdout.startswith("no")
    argv = ["ssh", "-F", str(testbed.ssh_config), "bastion", f"{sys.executable} -c '{CONNECT}' {inner.address}"]
    assert subprocess.run(argv, capture_output=True, text=True).stdout == "yes\n"


def test_nothing_stays_when_its_owner_is_killed(testbed: Testbed) -> None:
    owner = subprocess.Popen([sys.executable, "-c", UP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    interface, *processes = owner.stdout.readline().split()
    assert Path("/sys/class/net", interface).exists() and len(processes) == 3
    owner.kill()
    owner.communicate()
    until(lambda: not any(Path("/proc", pid).exists() for pid in processes), "the end of its processes")
    until(lambda: not Path("/sys/class/net", interface).exists(), "the end of its network")
