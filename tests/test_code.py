"""Code on its way: named by its content, the same everywhere, nothing outside of its folder."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.places import Place
from vpipe_cli.container.code import Bundle, Member, folder_bundle, ship_code, worker_bundle
from vpipe_cli.onhost.send import ask
from worker.errors import TransferError, UsageError


def project(folder: Path) -> Path:
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg" / "model.py").write_text("x = 1\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    for left in (".git", "__pycache__", "venv"):
        (folder / left).mkdir()
        (folder / left / "file").write_text("stays here")
    (folder / ".hidden").write_text("stays here")
    return folder


def test_the_worker_arrives_and_runs(tmp_path: Path) -> None:
    hosts = {host: Place(host, tmp_path / host) for host in ("a", "b")}
    bundle = worker_bundle()
    paths = ship_code(hosts, bundle)
    assert paths == {host: str(tmp_path / host / "code" / bundle.digest) for host in hosts}
    asked = hosts["a"].run(["env", f"PYTHONPATH={paths['a']}", sys.executable, "-m", "worker", "--help"], timeout=60)
    assert asked.code == 0 and b"python -m worker" in asked.stdout
    assert bundle.size < 2 << 20, "kilobytes at each launch"


def test_the_same_content_has_the_same_name_and_is_sent_once(tmp_path: Path) -> None:
    first, second = (folder_bundle(project(tmp_path / name)) for name in ("one", "two"))
    assert first.digest == second.digest
    assert [member.name for member in first.members] == ["pkg/model.py", "run.sh"]
    place = Place("a", tmp_path / "a")
    path = Path(ship_code({"a": place}, first)["a"])
    before = path.stat().st_ino
    assert (path / "run.sh").stat().st_mode & 0o777 == 0o500 and (path / "pkg/model.py").stat().st_mode & 0o777 == 0o400
    ship_code({"a": place}, second)
    assert path.stat().st_ino == before
    (path / "pkg" / "__pycache__").mkdir()
    (path / "pkg" / "__pycache__" / "x.pyc").write_bytes(b"made by Python")
    ship_code({"a": place}, second)
    assert path.stat().st_ino == before


def change(path: Path) -> None:
    path.chmod(0o600)
    path.write_text("x = 2\n")


@pytest.mark.parametrize(
    "tamper",
    [
        lambda path: change(path / "pkg/model.py"),
        lambda path: (path / "run.sh").chmod(0o400),
        lambda path: (path / "more.py").write_text("import os"),
        lambda path: (path / "link.py").symlink_to("/etc/passwd"),
    ],
)
def test_code_that_was_changed_there_is_sent_again(tmp_path: Path, tamper: Callable[[Path], object]) -> None:
    bundle, place = folder_bundle(project(tmp_path / "one")), Place("a", tmp_path / "a")
    path = Path(ship_code({"a": place}, bundle)["a"])
    tamper(path)
    assert Path(ship_code({"a": place}, bundle)["a"]) == path
    assert folder_bundle(path).digest == bundle.digest
    assert sorted(os.listdir(path.parent)) == [bundle.digest]


def test_what_cannot_travel_is_refused(tmp_path: Path) -> None:
    folder = project(tmp_path / "one")
    (folder / "inside.py").symlink_to("pkg/model.py")
    assert folder_bundle(folder).members[0].content == b"x = 1\n"
    (folder / "out.py").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match=r"out.py is a link that leads out of"):
        folder_bundle(folder)
    (folder / "out.py").unlink()
    (folder / "data").symlink_to("/var")
    with pytest.raises(UsageError, match=r"data is a link to a folder"):
        folder_bundle(folder)
    (folder / "data").unlink()
    (folder / "big.bin").write_bytes(bytes(3 << 20))
    with pytest.raises(UsageError, match=r"holds more than 2 MB of files; the largest: big.bin \(3 MB\)"):
        folder_bundle(folder, most=2 << 20)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a//b", "", "a\0b", "."])
def test_a_host_writes_nothing_outside_the_folder(tmp_path: Path, name: str) -> None:
    digest = Bundle((Member(name, False, b"x"),)).digest
    files = [[name, False, base64.b64encode(b"x").decode()]]
    answer = ask(Place("a", tmp_path), "code", {"do": "unpack", "digest": digest, "files": files}, timeout=30)
    assert "is no path inside the code" in answer["error"]
    assert list((tmp_path / "code").iterdir()) == []


def test_what_arrives_must_be_what_was_named(tmp_path: Path) -> None:
    request = {"do": "unpack", "digest": "0" * 64, "files": [["a.py", False, ""]]}
    assert "another digest" in ask(Place("a", tmp_path), "code", request, timeout=30)["error"]
    answer = ask(Place("a", tmp_path), "code", {**request, "digest": "../" + "0" * 61}, timeout=30)
    assert "is no sha256" in answer["error"]


def test_every_host_that_cannot_take_it_is_named(tmp_path: Path) -> None:
    for host in ("a", "c"):
        (tmp_path / host).write_text("a file where the folder shall be")
    hosts = {host: Place(host, tmp_path / host) for host in ("a", "b", "c")}
    with pytest.raises(TransferError) as caught:
        ship_code(hosts, Bundle((Member("a.py", False, b""),)))
    assert [line[:2] for line in caught.value.message.splitlines()] == ["a:", "c:"]
