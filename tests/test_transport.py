"""What needs no host: this machine as a transport, routes as ``ssh -G`` tells them, files of host keys, the fake."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from vpipe_cli.transport.base import Finished
from vpipe_cli.transport.connect import connect
from vpipe_cli.transport.fake import FakeTransport
from vpipe_cli.transport.hostkeys import HostKey, own_file, record, recorded, verify
from vpipe_cli.transport.proxy import Proxy
from vpipe_cli.transport.shell import command_line
from vpipe_cli.transport.target import Target, resolve
from worker.errors import TransferError, UnreachableError, UntrustedHost, UsageError
from worker.spec.ssh import SshSpec

CONFIG = """\
Include {folder}/more
Host gpu1
  HostName 10.0.0.1
  Port 2222
  User ana
  IdentityFile {folder}/%h-%r
  ProxyJump bo@login:2022,inner
Host login
  HostName login.lab
  HostKeyAlias front-door
Host circle
  ProxyJump circle
Host own
  ProxyCommand connect %h %p %r
"""
MORE = "Host inner\n  User eve\n  IdentitiesOnly yes\n"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))


@pytest.fixture
def ssh(tmp_path: Path) -> SshSpec:
    if not shutil.which("ssh"):
        pytest.skip("needs openssh-client")
    (tmp_path / "config").write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "more").write_text(MORE)
    return SshSpec(config=str(tmp_path / "config"))


def line(target: Target) -> str:
    way = f"{target.user}@{target.address}:{target.port}"
    return f"{line(target.via)} > {way}" if target.via else way


def test_an_alias_is_resolved_as_ssh_does(ssh: SshSpec, tmp_path: Path) -> None:
    found = resolve("gpu1", ssh)
    assert line(found) == "bo@login.lab:2022 > eve@inner:22 > ana@10.0.0.1:2222"
    assert found.keys == (f"{tmp_path}/10.0.0.1-ana",)
    assert found.known_as == "[10.0.0.1]:2222"
    assert found.via and not found.via.agent
    assert found.via.via and found.via.via.known_as == "front-door"
    assert resolve("own", ssh).command.startswith("connect own 22 ")


def test_what_the_file_says_goes_first(ssh: SshSpec) -> None:
    given = {"config": ssh.config, "user": "zoe", "jump": "login", "hosts": {"gpu2": {"jump": "none", "port": 7}}}
    spec = SshSpec.model_validate(given)
    assert line(resolve("gpu1", spec)) == "zoe@login.lab:22 > zoe@10.0.0.1:2222"
    assert line(resolve("gpu2", spec)) == "zoe@gpu2:7"


def test_one_jump_host_is_one_target_for_all_behind_it(ssh: SshSpec) -> None:
    spec = SshSpec.model_validate({"config": ssh.config, "jump": "login"})
    assert resolve("a", spec).via == resolve("b", spec).via


@pytest.mark.parametrize(
    "host, words", [("circle", "circle"), ("-oProxyCommand=id", "cannot be a host"), ("a b", "cannot be a host")]
)
def test_routes_that_are_none(ssh: SshSpec, host: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve(host, ssh)


def test_a_proxy_command_ends_with_its_socket_whatever_it_waits_for() -> None:
    proxy = Proxy("sleep 600")
    proxy.close()
    assert proxy.process.wait(10) == -signal.SIGTERM


def test_a_wrong_ssh_config_is_told_in_its_own_words(tmp_path: Path, ssh: SshSpec) -> None:
    (tmp_path / "config").write_text("Nonsense yes\n")
    with pytest.raises(UsageError, match=r"(?s)`ssh -G h` says: .*Bad configuration option: nonsense"):
        resolve("h", ssh)


def test_an_alias_where_there_is_no_ssh(ssh: SshSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert line(resolve("gpu1", ssh)).endswith("ana@10.0.0.1:2222")


def key(text: str, kind: str = "ssh-ed25519") -> HostKey:
    return HostKey(kind, text.encode())


def entry(names: str, text: str) -> str:
    return f"{names} ssh-ed25519 {base64.b64encode(text.encode()).decode()} a comment\n"


@pytest.mark.parametrize(
    "names, name, known",
    [
        ("a,b", "b", True),
        ("a", "A", True),
        ("*.lab", "x.lab", True),
        ("*.lab,!x.lab", "x.lab", False),
        ("[a]:22", "a", False),
        ("[a]:2222", "[a]:2222", True),
        ("gpu?", "gpu12", False),
        ("# a", "a", False),
    ],
)
def test_names_in_a_file_of_host_keys(tmp_path: Path, names: str, name: str, known: bool) -> None:
    (tmp_path / "k").write_text("junk\n\na ssh-ed25519 %%%\n" + entry(names, "K"))
    assert [found.key for found in recorded(name, [str(tmp_path / "k")])] == [key("K")] * known


def test_hashed_names_and_fingerprints_are_those_of_openssh(tmp_path: Path) -> None:
    if not shutil.which("ssh-keygen"):
        pytest.skip("needs openssh-client")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True)
    public = (tmp_path / "id.pub").read_text().split()
    (tmp_path / "k").write_text(f"gpu1 {public[0]} {public[1]}\n")
    subprocess.run(["ssh-keygen", "-H", "-f", tmp_path / "k"], check=True, capture_output=True)
    assert "gpu1" not in (tmp_path / "k").read_text()
    (found,) = recorded("gpu1", [str(tmp_path / "k")])
    shown = subprocess.run(["ssh-keygen", "-lf", tmp_path / "id.pub"], capture_output=True, text=True).stdout
    assert found.key.fingerprint in shown.split()


def server(name: str, known_hosts: Path) -> Target:
    """A server with a name in a file of host keys."""
    return Target("host", "10.0.0.1", 22, "ana", (), False, name, (str(known_hosts),), 1.0)


def test_keys_unknown_changed_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "k"
    file.write_text(entry("a", "K") + "@revoked " + entry("*", "R") + "@cert-authority " + entry("*", "C"))
    verify(server("a", file), key("K"))
    for name, shown, words in [
        ("b", "K", "unknown"),
        ("a", "L", "has changed"),
        ("a", "R", "revoked"),
        ("b", "C", "unkn"),
    ]:
        with pytest.raises(UntrustedHost, match=words):
            verify(server(name, file), key(shown))


def test_a_key_that_was_recorded_replaces_what_was_known(tmp_path: Path) -> None:
    file = tmp_path / "k"
    file.write_text(entry("a", "K"))
    record("b", key("B"))
    record("a", key("L"))
    record("a", key("M"))
    verify(server("a", file), key("M"))
    with pytest.raises(UntrustedHost, match="has changed"):
        verify(server("a", file), key("K"))
    assert len(own_file().read_text().splitlines()) == 2
    assert own_file().stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("argv", [["python3", "-m", "worker"], ["cat", "/a/b.c"], ["./x", "1,2:3"]])
def test_plain_commands_stay_readable(argv: list[str]) -> None:
    assert command_line(argv) == " ".join(argv)


@pytest.mark.parametrize("argv", [["A=b"], ["=ls"], ["~"], ["a b"], ["-"], [""], ["x", "*"], ["x", "a'"]])
def test_other_commands_hold_no_sign_that_a_shell_knows(argv: list[str]) -> None:
    before, coded = command_line(argv).rsplit(" ", 1)
    assert before.startswith("exec /bin/sh -c '") and coded.strip("=").isalnum()


def test_this_machine_is_a_transport_too(tmp_path: Path) -> None:
    with connect(["localhost"], SshSpec()) as hosts:
        machine = hosts["localhost"]
        assert machine.run(["sh", "-c", "cat; echo e >&2; exit 3"], stdin=b"in", timeout=20) == Finished(
            3, b"in", b"e\n"
        )
        assert machine.run(["sh", "-c", "kill -9 $$"], timeout=20).code is None
        assert machine.run(["/nosuch"], timeout=20).code == 127
        with pytest.raises(TimeoutError):
            machine.run(["sh", "-c", "sleep 1000 & wait"], timeout=0.1)
        channel = machine.open(["cat"], timeout=20)
        channel.write(b"x")
        assert channel.read(20) == b"x"
        channel.close()
        old = os.umask(0o002)
        try:
            machine.put(b"data", str(tmp_path / "a" / "b" / "f"), mode=0o640, timeout=20)
        finally:
            os.umask(old)
        modes = [oct(path.stat().st_mode & 0o777) for path in (tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/f")]
        assert modes == ["0o700", "0o700", "0o640"]
        for target in (tmp_path / "a", tmp_path / "a/b/f/g"):
            with pytest.raises(TransferError, match=f"localhost: cannot write {target}"):
                machine.put(b"x", str(target), timeout=20)
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_the_fake_answers_as_told_and_remembers() -> None:
    machine = FakeTransport("h", lambda argv, stdin: Finished(0, b"out", b""))
    assert machine.run(["a", "b"], stdin=b"in", timeout=1).stdout == b"out"
    assert machine.open(["c"], timeout=1).read(1) == b"out"
    machine.put(b"x", "/f", mode=0o644, timeout=1)
    assert machine.calls == [(["a", "b"], b"in"), (["c"], b"")] and machine.files == {"/f": (b"x", 0o644)}
    machine.full = True
    with pytest.raises(TransferError):
        machine.put(b"x", "/g", timeout=1)
    machine.cut = True
    with pytest.raises(UnreachableError):
        machine.run(["a"], timeout=1)


def test_the_command_shows_ranks_and_ways(tmp_path: Path, ssh: SshSpec, capsys: pytest.CaptureFixture[str]) -> None:
    from vpipe_cli.commands.machines import machines

    file = tmp_path / "cluster.yml"
    file.write_text(
        f"machines: [cpu, 'gpu[1-2]:0-1']\nssh: {{config: {tmp_path}/config, hosts: {{gpu2: {{port: 7}}}}}}\n"
    )
    machines([str(file)], "json")
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1 and document["engine"] == "ssh"
    assert [(rank["host"], rank["device"]) for rank in document["ranks"]][:2] == [
        ("localhost", "cpu"),
        ("gpu1", "cuda:0"),
    ]
    assert [host["ssh"] and host["ssh"]["port"] for host in document["machines"]] == [None, 2222, 7]
    assert document["machines"][1]["ssh"]["via"]["via"]["host"] == "login"
    machines([str(file)], "text")
    shown = capsys.readouterr().out
    assert "ana@10.0.0.1:2222 through login, then inner" in shown and shown.count("gpu1") == 2
