"""Who is let in where, and which host is trusted: real sshd, keys and agents."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.test_ssh import settings
from tests.testbed.host import keygen
from tests.testbed.network import Testbed
from vpipe_cli.transport.connect import connect, trust
from vpipe_cli.transport.hostkeys import own_file
from worker.errors import UnreachableError, UntrustedHost
from worker.spec.ssh import SshSpec


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def test_an_unknown_key_is_refused_until_it_is_trusted(testbed: Testbed) -> None:
    (host,) = testbed.take(1)
    key = host.folder / "host_key.pub"
    shown = subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True).stdout.split()[1]
    testbed.known_hosts.write_text("")
    with pytest.raises(UntrustedHost, match=r"h1: the key of .* is unknown") as caught:
        connect(["h1"], settings(testbed))
    assert shown in caught.value.message and "vpipe doctor CLUSTER.yml --trust" in caught.value.hint
    assert caught.value.exit_code == 105
    assert [offer.state for offer in trust("h1", settings(testbed), lambda offer: False)] == ["unknown"]
    assert not own_file().exists()
    (offer,) = trust("h1", settings(testbed), lambda offer: offer.key.fingerprint == shown)
    assert offer.state == "known"
    connect(["h1"], settings(testbed)).close()


def test_a_changed_key_is_refused_until_it_is_trusted(testbed: Testbed) -> None:
    (host,) = testbed.take(1)
    record = testbed.known_hosts.read_text()
    host.kill()
    host.new_key()
    host.start()
    testbed.known_hosts.write_text(record)
    with pytest.raises(
        UntrustedHost, match=r"h1: the key of .* has changed: it shows ssh-ed25519 SHA256:.*known_hosts:1"
    ):
        connect(["h1"], settings(testbed))
    assert [offer.state for offer in trust("h1", settings(testbed), lambda offer: offer.state == "changed")] == [
        "known"
    ]
    connect(["h1"], settings(testbed)).close()


def test_port_user_and_key_of_ones_own(testbed: Testbed, tmp_path: Path) -> None:
    (host,) = testbed.take(1, port=2222)
    keygen(tmp_path / "mine")
    with host.path("/home/ana/.ssh/authorized_keys").open("w") as file:
        file.write((tmp_path / "mine.pub").read_text())
    ssh = SshSpec(
        config="/dev/null",
        user="ana",
        port=2222,
        key=str(tmp_path / "mine"),
        known_hosts=str(testbed.known_hosts),
        hosts={"gpu1": {"address": host.address}},  # type: ignore[dict-item]
    )
    with connect(["gpu1"], ssh) as hosts:
        assert hosts["gpu1"].run(["id", "-un"], timeout=20).stdout == b"ana\n"


def test_who_is_not_let_in_learns_which_keys_were_tried(testbed: Testbed) -> None:
    testbed.take(1)
    with pytest.raises(UnreachableError, match=r"does not let nobody2 in; tried .*/id") as caught:
        connect(["h1"], settings(testbed, user="nobody2"))
    assert "ssh-copy-id" in caught.value.hint


def test_a_host_that_wants_more_than_a_key_is_told_apart(testbed: Testbed) -> None:
    testbed.take(1, extra="AuthenticationMethods publickey,publickey")
    with pytest.raises(UnreachableError, match="wants more than a key: publickey"):
        connect(["h1"], settings(testbed))


def test_a_locked_key_is_named(testbed: Testbed, tmp_path: Path) -> None:
    testbed.take(1)
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", locked], check=True)
    with pytest.raises(UnreachableError, match=r"locked: ssh-add .*/locked unlocks it"):
        connect(["h1"], settings(testbed, key=str(locked)))


def test_an_agent_unlocks_a_key(testbed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (host,) = testbed.take(1)
    keygen(tmp_path / "held")
    host.path("/root/.ssh/authorized_keys").write_text((tmp_path / "held.pub").read_text())
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.PIPE)
    try:
        assert agent.stdout and agent.stdout.readline()  # it listens by now
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        subprocess.run(["ssh-add", "-q", tmp_path / "held"], check=True)
        subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", tmp_path / "held"], check=True)
        connect(["h1"], settings(testbed, key=str(tmp_path / "held"))).close()
    finally:
        agent.terminate()
        agent.communicate()
