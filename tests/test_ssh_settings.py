"""The sections ``machines``, ``engine`` and ``ssh`` of cluster.yml: what they give, and what is refused where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.configs import load, problems

REMOTE = "machines: ['gpu[1-2]:0']\n"


@pytest.mark.parametrize(
    "text, engine",
    [
        ("machines: [cpu*2]", "local"),
        (REMOTE, "ssh"),
        ("machines: [cpu, 'a:cpu']", "ssh"),
        (REMOTE + "engine: ssh", "ssh"),
    ],
)
def test_the_engine_follows_from_the_machines(tmp_path: Path, text: str, engine: str) -> None:
    assert load(tmp_path, text).engine == engine


def test_machines_that_the_engine_cannot_reach_are_named() -> None:
    assert problems("engine: local\nmachines: [cpu, 'gpu[1-2]:0']\n") == [
        ":2:17: machines[1]: 'gpu[1-2]:0' is another machine, but engine local runs here only; "
        "leave `engine` out, or write ssh"
    ]


def test_settings_of_all_machines_and_of_one(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    text = REMOTE + "ssh: {user: ana, port: 2222, key: key, jump: 'bo@login.lab:23,b', hosts: {gpu2: {user: eve}}}\n"
    ssh = load(tmp_path, text).ssh
    assert (ssh.of("gpu1").user, ssh.of("gpu2").user) == ("ana", "eve")
    assert ssh.of("gpu2").port == 2222 and ssh.of("gpu2").jump == "bo@login.lab:23,b"
    assert ssh.key == str(tmp_path / "key")


@pytest.mark.parametrize(
    "section, where, words",
    [
        ("user: -oProxyCommand=id", ":2:13: ssh.user", "cannot be '-oProxyCommand=id'"),
        ("user: a;id", ":2:13: ssh.user", "cannot be 'a;id'"),
        ('user: "a\\nb"', ":2:13: ssh.user", "cannot be 'a\\nb'"),
        ('user: "a\\u001b[31m"', ":2:13: ssh.user", "cannot be"),
        ("user: $(id)", ":2:13: ssh.user", "cannot be '$(id)'"),
        ("user: ''", ":2:13: ssh.user", "cannot be ''"),
        ("hosts: {gpu1: {address: -x}}", ":2:31: ssh.hosts.gpu1.address", "cannot be '-x'"),
        ("address: gpu", ":2:7: ssh.address", "unknown key"),
        ("jump: -x", ":2:13: ssh.jump", "cannot be '-x'"),
        ("jump: 'a b'", ":2:13: ssh.jump", "cannot be 'a b'"),
        ("jump: '`id`'", ":2:13: ssh.jump", "cannot be '`id`'"),
        ("port: 70000", ":2:13: ssh.port", "must be at most 65535"),
        ("key: nowhere", ":2:12: ssh.key", "no such file or folder"),
        ("config: nowhere", ":2:15: ssh.config", "no such file or folder"),
        ("hosts: {gpu1: {key: nowhere}}", ":2:27: ssh.hosts.gpu1.key", "no such file or folder"),
        ("hosts: {gpu1: {user: a|b}}", ":2:28: ssh.hosts.gpu1.user", "cannot be 'a|b'"),
        ("hosts: {gpu1: {usr: a}}", ":2:22: ssh.hosts.gpu1.usr", "did you mean `user`?"),
        ("hosts: {'-x': {user: a}}", ":2:14: ssh.hosts", "holds '-x', which cannot be a machine"),
        ("pass: secret", ":2:7: ssh.pass", "unknown key"),
    ],
)
def test_what_is_refused_and_where(section: str, where: str, words: str) -> None:
    found = problems(REMOTE + f"ssh: {{{section}}}\n")
    assert len(found) == 1 and found[0].startswith(where) and words in found[0], found
