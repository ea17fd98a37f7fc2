"""Commands and files over SSH: real sshd, real cables that are pulled."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.testbed.host import Host, until
from tests.testbed.network import Testbed
from vpipe_cli.transport.base import Transport
from vpipe_cli.transport.connect import Hosts, connect, trust
from vpipe_cli.transport.ssh import alive
from worker.errors import TransferError, UnreachableError, UntrustedHost, UsageError
from worker.spec.ssh import SshSpec

HOSTILE = [
    "; id",
    "$(id)",
    "`id`",
    "a'b\"c",
    "a\nb",
    "-n",
    "--",
    "",
    " ",
    "\\",
    "!x",
    "*",
    "~",
    "%",
    "é\udcff",
    "a=b",
    "#",
]
PRINT_ARGV = "import os, sys; os.write(1, b'\\0'.join(map(os.fsencode, sys.argv[1:])))"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is given up after 2.5 s in place of 15."""
    monkeypatch.setattr(alive, "BEAT", 0.5)
    monkeypatch.setattr(alive, "SILENCE", 2.0)


def settings(testbed: Testbed, **more: object) -> SshSpec:
    return SshSpec.model_validate({"config": str(testbed.ssh_config), "connect_timeout": 15.0, **more})


def one(testbed: Testbed, **more: object) -> tuple[Host, Hosts, Transport]:
    """A host and the way to it."""
    (host,) = testbed.take(1)
    hosts = connect(["h1"], settings(testbed, **more))
    return host, hosts, hosts["h1"]


def test_many_megabytes_on_both_outputs_and_the_input(testbed: Testbed) -> None:
    _, hosts, machine = one(testbed)
    with hosts:
        script = "cat; head -c 5000000 /dev/zero >&2; exit 7"
        done = machine.run(["sh", "-c", script], stdin=b"x" * 5_000_000, timeout=60)
    assert (done.code, done.stdout, len(done.stderr)) == (7, b"x" * 5_000_000, 5_000_000)


def test_how_commands_end(testbed: Testbed) -> None:
    _, hosts, machine = one(testbed)
    with hosts:
        assert machine.run(["sh", "-c", "kill -9 $$"], timeout=20).code is None
        assert machine.run(["nosuch"], timeout=20).code == 127
        assert machine.run(["true"], stdin=b"x" * 5_000_000, timeout=20).code == 0
        with pytest.raises(TimeoutError, match=r"h1: sleep did not end within 0.2 s"):
            machine.run(["sleep", "1000"], timeout=0.2)
        with pytest.raises(UsageError, match="send them to its input"):
            machine.run(["echo", "x" * 200_000], timeout=20)


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/tcsh"])
def test_no_argument_means_anything_to_a_shell(testbed: Testbed, shell: str) -> None:
    if not os.path.exists(shell):
        pytest.skip(f"needs {shell}")
    testbed.take(1, shell=shell)
    with connect(["h1"], settings(testbed, user="ana")) as hosts:
        done = hosts["h1"].run([sys.executable, "-c", PRINT_ARGV, *HOSTILE], timeout=20)
        assert done.stdout.split(b"\0") == list(map(os.fsencode, HOSTILE)), done.stderr
        hosts["h1"].put(b"here", "./-a 'b'\n$(id)/*!", timeout=20)
        assert hosts["h1"].run(["cat", "./-a 'b'\n$(id)/*!"], timeout=20).stdout == b"here"


def test_an_open_command_answers_while_it_runs(testbed: Testbed) -> None:
    _, hosts, machine = one(testbed)
    with hosts:
        channel = machine.open(["sh", "-c", "echo up; echo noise >&2; cat"], timeout=20)
        assert channel.read(20) == b"up\n"
        channel.write(b"x")
        assert channel.read(20) == b"x"
        with pytest.raises(TimeoutError):
            channel.read(0.05)
        channel.close()
        channel.close()
        ended = machine.open(["true"], timeout=20)
        assert ended.read(20) == b""
        ended.close()


def test_files_arrive_whole_and_private(testbed: Testbed, tmp_path: Path) -> None:
    host, hosts, machine = one(testbed)
    data = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(data)
    told: list[int] = []
    with hosts:
        machine.put(tmp_path / "file", "/root/a/b/c", mode=0o640, progress=told.append, timeout=20)
        machine.put(b"", "/root/a/empty", timeout=20)
    found = host.path("/root/a/b/c")
    assert hashlib.sha256(found.read_bytes()).digest() == hashlib.sha256(data).digest()
    assert [oct(path.stat().st_mode & 0o777) for path in (found, found.parent)] == ["0o640", "0o700"]
    assert host.path("/root/a/empty").read_bytes() == b""
    assert told == sorted(told) and told[-1] == len(data) and len(told) >= 3


def test_a_machine_that_cannot_take_a_file_says_why(testbed: Testbed) -> None:
    host, hosts, machine = one(testbed)
    with hosts:
        machine.run(["sh", "-c", "mkdir /run/s && mount -t tmpfs -o size=1m none /run/s"], timeout=20)
        with pytest.raises(TransferError, match=r"h1: cannot write /run/s/f: .*No space left on device"):
            machine.put(os.urandom(9_000_000), "/run/s/f", timeout=20)
        with pytest.raises(TransferError, match="/proc/x"):
            machine.put(b"x", "/proc/x/y", timeout=20)
        with pytest.raises(TransferError, match="/root is a folder"):
            machine.put(b"x", "/root", timeout=20)
    assert list(host.path("/run/s").iterdir()) == []


def test_twelve_threads_share_a_connection(testbed: Testbed) -> None:
    host, hosts, machine = one(testbed)
    with hosts, ThreadPoolExecutor(12) as pool:
        found = pool.map(lambda n: machine.run(["sh", "-c", f"sleep 0.1; echo {n}"], timeout=30).stdout, range(24))
        assert list(found) == [f"{n}\n".encode() for n in range(24)]
        assert len(host.logins()) == 1


def test_who_cannot_be_reached_is_named_with_the_reason(testbed: Testbed) -> None:
    testbed.take(4)
    second, third = testbed.take(3)[1:]
    second.kill()
    third.cut()
    hosts = ["h1", "h2", "h3", "h4", "nosuch.invalid"]
    ssh = settings(testbed, connect_timeout=4.0, hosts={"h4": {"port": 2222}})
    with connect(hosts, ssh, partial=True) as found:
        assert list(found) == ["h1"]
        reasons = {host: error.message for host, error in found.errors.items()}
    assert (
        "refuses: no SSH server listens there" in reasons["h4"]
        and f"{testbed.take(4)[3].address}:2222" in reasons["h4"]
    )
    assert all("h2" in reasons["h2"] and "h3" in reasons["h3"] for _ in hosts)
    assert "has a name that nobody knows" in reasons["nosuch.invalid"]
    with pytest.raises(UnreachableError, match="4 hosts cannot be used:") as caught:
        connect(hosts, ssh)
    assert all(host in caught.value.message for host in hosts[1:])


def test_a_server_that_says_nothing_is_given_up(testbed: Testbed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ssh = SshSpec(config="/dev/null", port=silent.getsockname()[1], connect_timeout=1.0)
        with pytest.raises(UnreachableError, match=r"127.0.0.1:\d+\) is (silent|too busy)"):
            connect(["127.0.0.1"], ssh)


def test_login_files_that_print_are_told_apart_from_commands(testbed: Testbed) -> None:
    (host,) = testbed.take(1)
    host.path("/root/.bashrc").write_text("echo Welcome to the cluster\n")
    with pytest.raises(UnreachableError, match="prints text before every command: 'Welcome to the cluster'"):
        connect(["h1"], settings(testbed))


def test_twenty_four_hosts_behind_one_bastion(testbed: Testbed) -> None:
    names = [f"i{number + 1}" for number in range(24)]
    bastion, _ = testbed.behind_bastion(24)
    with connect(names, settings(testbed, connect_timeout=60.0)) as hosts:
        said = hosts.each(lambda machine: machine.run(["hostname"], timeout=60).stdout.decode().strip())
        assert said == {name: name for name in names}
        assert len(bastion.logins()) == 1


def test_a_server_that_takes_few_logins_at_once_gets_them_one_after_another(testbed: Testbed) -> None:
    (host,) = testbed.take(1, extra="MaxStartups 2:100:2")
    names = [f"n{number}" for number in range(24)]
    spec = settings(testbed, connect_timeout=60.0, hosts={name: {"address": host.address} for name in names})
    connect(names, spec).close()


def test_a_dead_bastion_is_named_once_its_time_is_up(testbed: Testbed) -> None:
    bastion, _ = testbed.behind_bastion(1)
    bastion.cut()
    begin = time.monotonic()
    with pytest.raises(UnreachableError, match="24 hosts cannot be used") as caught:
        connect([f"i{number + 1}" for number in range(24)], settings(testbed, connect_timeout=2.0))
    assert bastion.address in caught.value.message
    assert time.monotonic() - begin < 24  # not one after another


def test_a_bastion_is_trusted_before_what_is_behind_it(testbed: Testbed) -> None:
    testbed.behind_bastion(1)
    testbed.known_hosts.write_text("")
    with pytest.raises(UntrustedHost, match=r"10\.213"):
        connect(["i1"], settings(testbed))
    offers = trust("i1", settings(testbed), lambda offer: True)
    assert [offer.target.host for offer in offers][1:] == ["i1"] and len(offers) == 2
    connect(["i1"], settings(testbed)).close()


def test_the_users_own_proxy_command(testbed: Testbed) -> None:
    _, (inner,) = testbed.behind_bastion(1)
    config = testbed.folder / "proxy"
    command = f"ssh -F {testbed.ssh_config} -W %h:%p bastion"
    config.write_text(f"Host i1\n HostName {inner.address}\n ProxyCommand {command}\nInclude {testbed.ssh_config}\n")
    with connect(["i1"], settings(testbed, config=str(config))) as hosts:
        assert hosts["i1"].run(["hostname"], timeout=20).stdout == b"i1\n"


@pytest.mark.parametrize("cable", ["host", "client", "behind"])
def test_a_cut_in_the_middle_is_noticed(testbed: Testbed, cable: str, tmp_path: Path, impatient: None) -> None:
    if cable == "behind":
        _, (host,) = testbed.behind_bastion(1)
    else:
        (host,) = testbed.take(1)
    with connect([host.name], settings(testbed)) as hosts, ThreadPoolExecutor(3) as pool:
        machine = hosts[host.name]
        channel = machine.open(["sh", "-c", "echo up; cat"], timeout=20)
        assert channel.read(20) == b"up\n"
        under_way = threading.Event()
        source = tmp_path / "big"
        with source.open("wb") as file:
            file.truncate(1 << 34)
        put = pool.submit(machine.put, source, "/var/tmp/big", progress=lambda sent: under_way.set(), timeout=30)
        run = pool.submit(machine.run, ["sh", "-c", "echo begun >/var/tmp/begun; sleep 1000"], timeout=60)
        read = pool.submit(channel.read, 60)
        assert under_way.wait(30)
        until(lambda: host.path("/var/tmp/begun").exists(), "a command")
        begin = time.monotonic()
        testbed.cut_client() if cable == "client" else host.cut()
        for what in (put, run, read):
            with pytest.raises(UnreachableError, match=f"the connection to {host.name} .* broke"):
                what.result(timeout=40)
        assert time.monotonic() - begin < 40
        testbed.join_client() if cable == "client" else host.join()
        assert machine.run(["hostname"], timeout=20).stdout == f"{host.name}\n".encode()
        assert not host.path("/var/tmp/big").exists()


def test_half_an_output_is_never_taken_for_the_whole(testbed: Testbed) -> None:
    host, hosts, machine = one(testbed)
    begun = host.path("/var/tmp/begun")
    with hosts, ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            script = "head -c 100000 /dev/zero; echo >>/var/tmp/begun; exec sleep 1000"
            halves = [pool.submit(machine.run, ["sh", "-c", script], timeout=60) for _ in range(3)]
            until(lambda: begun.exists() and begun.stat().st_size == 3, "all three")  # one that begins later would live
            for pid in host.logins():
                os.kill(pid, 9)
            with suppress(UnreachableError):
                machine.run(["rm", "/var/tmp/begun"], timeout=20)  # connects anew while the others find out
            for half in halves:
                with pytest.raises(UnreachableError, match="h1"):
                    half.result()
            machine.run(["rm", "-f", "/var/tmp/begun"], timeout=20)


def test_a_host_that_dies_takes_no_one_along(testbed: Testbed, impatient: None) -> None:
    _, second = testbed.take(2)
    with connect(["h1", "h2"], settings(testbed, connect_timeout=3.0)) as hosts:
        channel = hosts["h2"].open(["cat"], timeout=20)
        second.kill()
        with pytest.raises(UnreachableError, match="h2"):
            channel.read(40)
        with pytest.raises(UnreachableError, match="h2"):
            hosts["h2"].run(["true"], timeout=20)
        assert hosts["h1"].run(["hostname"], timeout=20).stdout == b"h1\n"
