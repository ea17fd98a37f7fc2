"""Images on their way: once from here, then among the machines; resumed, refused, never half of one under its name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.places import Place
from vpipe_cli.container import ship as module
from vpipe_cli.container.ship import Step, ship
from vpipe_cli.container.talk import Refusal, Talk
from vpipe_cli.onhost import arrival
from worker.errors import ImageError, TransferError, UnreachableError

SIZE = 6 << 20
TALK = 100_000
"""Bytes below which a conversation stays that is not about sending."""


@pytest.fixture(scope="module")
def sif(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sif") / "x.sif"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture(scope="module")
def sha256(sif: Path) -> str:
    return hashlib.sha256(sif.read_bytes()).hexdigest()


def places(tmp_path: Path, *hosts: str, cut: int | None = None) -> dict[str, Place]:
    return {host: Place(host, tmp_path / host, cut) for host in hosts}


def image(place: Place, sha256: str) -> Path:
    return place.root / "images" / f"{sha256}.sif"


def parts(place: Place) -> list[Path]:
    return list((place.root / "images").glob(".*.part"))


def test_one_upload_then_nothing(tmp_path: Path, sif: Path, sha256: str) -> None:
    hosts, steps = places(tmp_path, "a", "b", "c"), []
    paths = ship(hosts, sif, sha256, steps.append)
    assert paths == {host: str(image(place, sha256)) for host, place in hosts.items()}
    for place in hosts.values():
        assert image(place, sha256).read_bytes() == sif.read_bytes()
        assert image(place, sha256).stat().st_mode & 0o777 == 0o444
        assert parts(place) == []
    uploaded = sum(place.sent > SIZE for place in hosts.values())
    assert uploaded == 1 or not addresses(), "who has it gives it to the others"
    before = {host: place.sent for host, place in hosts.items()}
    steps.clear()
    assert ship(hosts, sif, sha256, steps.append) == paths
    assert all(place.sent - before[host] < TALK for host, place in hosts.items())
    assert {(step.host, step.what) for step in steps} == {(host, "present") for host in hosts}


def addresses() -> list[str]:
    from vpipe_cli.onhost.peers import addresses as found

    return found()


def test_this_machine_needs_no_copy(tmp_path: Path, sif: Path, sha256: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path))
    place = Place("localhost", tmp_path)
    for _ in range(2):
        assert ship({"localhost": place}, sif, sha256) == {"localhost": str(image(place, sha256))}
    assert image(place, sha256).samefile(sif) and place.sent == 0


def test_an_upload_that_was_cut_goes_on(tmp_path: Path, sif: Path, sha256: str) -> None:
    cut = places(tmp_path, "a", cut=SIZE // 2)["a"]
    with pytest.raises(UnreachableError, match="the cable was pulled"):
        ship({"a": cut}, sif, sha256)
    wait_for_part(cut)
    have = parts(cut)[0].stat().st_size
    assert not image(cut, sha256).exists() and 0 < have < SIZE
    again = places(tmp_path, "a")["a"]
    ship({"a": again}, sif, sha256)
    assert image(again, sha256).read_bytes() == sif.read_bytes()
    assert SIZE - have <= again.sent < SIZE - have + TALK


def test_a_beginning_of_something_else_is_not_built_upon(tmp_path: Path, sif: Path, sha256: str) -> None:
    cut = places(tmp_path, "a", cut=SIZE // 2)["a"]
    with pytest.raises(UnreachableError):
        ship({"a": cut}, sif, sha256)
    wait_for_part(cut)
    with parts(cut)[0].open("r+b") as file:
        file.write(b"not the same")
    again = places(tmp_path, "a")["a"]
    ship({"a": again}, sif, sha256)
    assert image(again, sha256).read_bytes() == sif.read_bytes()
    assert again.sent > SIZE


def wait_for_part(place: Place) -> None:
    """Until the program there has noticed that nobody speaks any more: it lets go of its lock."""
    lock = next((place.root / "images").glob(".*.lock"))
    subprocess.run(["flock", str(lock), "true"], timeout=20, check=True)


def test_what_arrives_is_hashed_and_written_piece_by_piece(
    tmp_path: Path, sif: Path, sha256: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "STRIDE", 1 << 20)  # several of them
    whole, begun = sif.read_bytes(), 12345
    comes = io.BytesIO(whole[begun:] + b"and more")
    with (tmp_path / "part").open("w+b", buffering=0) as file:
        file.write(whole[:begun])
        arriving = arrival.Arrival(file.fileno(), begun, hashlib.sha256(whole[:begun]))
        while arriving.at < SIZE and arriving.take(lambda view: comes.readinto(view[:70_001]), SIZE - arriving.at):
            pass
        assert (arriving.at, arriving.digest()) == (SIZE, sha256)
    assert (tmp_path / "part").read_bytes() == whole and comes.read() == b"and more"


def test_what_is_not_the_image_never_gets_its_name(tmp_path: Path, sif: Path) -> None:
    place = places(tmp_path, "a")["a"]
    with pytest.raises(TransferError, match=r"^a: what arrived is not the image: its sha256 is [0-9a-f]{64}$"):
        ship({"a": place}, sif, "0" * 64)
    assert not image(place, "0" * 64).exists() and parts(place) == []


def test_a_damaged_image_is_refused_and_named(tmp_path: Path, sif: Path, sha256: str) -> None:
    hosts = places(tmp_path, "a", "b", "c")
    ship(hosts, sif, sha256)
    for host in ("b", "c"):
        path = image(hosts[host], sha256)
        path.chmod(0o600)
        with path.open("r+b") as file:
            byte = file.read(1)[0]
            file.seek(0)
            file.write(bytes([byte ^ 1]))
    with pytest.raises(ImageError) as caught:
        ship(hosts, sif, sha256)
    lines = caught.value.message.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["b", "c"]
    assert all("is damaged: its sha256 is" in line for line in lines)
    assert caught.value.hint == "`vpipe image ship --repair` replaces it"
    ship(hosts, sif, sha256, repair=True)
    assert image(hosts["b"], sha256).read_bytes() == sif.read_bytes()


def test_two_at_once_bring_it_once(tmp_path: Path, sif: Path, sha256: str) -> None:
    first, second = places(tmp_path, "a")["a"], places(tmp_path, "a")["a"]
    threads = [threading.Thread(target=ship, args=({"a": place}, sif, sha256)) for place in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert image(first, sha256).read_bytes() == sif.read_bytes()
    assert sorted(place.sent > SIZE for place in (first, second)) == [False, True]


def test_who_cannot_be_reached_by_the_others_gets_it_from_here(
    tmp_path: Path, sif: Path, sha256: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = places(tmp_path, "a", "b")
    ship({"a": hosts["a"]}, sif, sha256)
    monkeypatch.setattr(module.Shipment, "_fetch", lambda *_: False)
    steps: list[Step] = []
    ship(hosts, sif, sha256, steps.append)
    assert [step.via for step in steps if step.host == "b"][-1] == "localhost"
    assert image(hosts["b"], sha256).read_bytes() == sif.read_bytes()


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_machine_gives_on_what_still_arrives(tmp_path: Path, sif: Path, sha256: str, goes_on: bool) -> None:
    """Half of it comes to the second machine before the first one gets the rest; or never does."""
    if not addresses():
        pytest.skip("this machine has no address but loopback")
    first, second = places(tmp_path, "a", "b").values()
    of_it = {"sha256": sha256, "size": SIZE, "token": "secret"}
    with closing(Talk(first, {"do": "receive", **of_it})) as arriving:
        assert arriving.hear()["have"] == 0
        arriving.say({"from": 0})
        arriving.send(sif.read_bytes()[: SIZE // 2])
        with (
            closing(Talk(first, {"do": "serve", "peers": addresses(), **of_it})) as giving,
            closing(Talk(second, {"do": "fetch", "endpoints": giving.hear()["endpoints"], **of_it})) as fetching,
        ):
            assert fetching.hear()["got"] > 0
            if goes_on:
                arriving.send(sif.read_bytes()[SIZE // 2 :])
                assert "done" in arriving.hear()
                while "done" not in fetching.hear():
                    pass
                assert image(second, sha256).read_bytes() == sif.read_bytes()
            else:
                arriving.close()
                with pytest.raises(Refusal, match=f"cut off after {SIZE // 2} of {SIZE} bytes"):
                    while True:
                        fetching.hear()


def test_a_giver_gives_only_to_who_knows_the_token(tmp_path: Path, sif: Path, sha256: str) -> None:
    if not addresses():
        pytest.skip("this machine has no address but loopback")
    place = places(tmp_path, "a")["a"]
    ship({"a": place}, sif, sha256)
    peers = {"peers": addresses(), "token": "secret"}
    talk = Talk(place, {"do": "serve", "sha256": sha256, "size": SIZE, **peers})
    try:
        host, port = talk.hear()["endpoints"][0]
        socket.create_connection((host, port), 10).close()
        for hello, given in ((b"guess 0\n", 0), (b"\n", 0), (b"secret 100\n", SIZE - 100)):
            with socket.create_connection((host, port), 10) as stranger:
                stranger.sendall(hello)
                assert len(b"".join(iter(lambda peer=stranger: peer.recv(1 << 20), b""))) == given, hello
        assert talk.hear() == json.loads('{"done": true}')
    finally:
        talk.close()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a small disk needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_without_room_is_named_before_anything_is_sent(full_disk: Path, sif: Path, sha256: str) -> None:
    place = Place("a", full_disk)
    with pytest.raises(TransferError, match=r"^a: the disk of .*small has 3 MB, the image needs 6\n") as caught:
        ship({"a": place}, sif, sha256)
    assert "VPIPE_HOME" in caught.value.hint and place.sent < TALK


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, sif: Path, sha256: str) -> None:
    (tmp_path / "a").write_text("a file where the folder shall be")
    with pytest.raises(TransferError, match=r"^a: .*(File exists|Not a directory)"):
        ship(places(tmp_path, "a"), sif, sha256)
