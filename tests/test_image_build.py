"""Images built through spython with a real Apptainer: once, again only for a reason, and failures told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.apptainer.fixtures import FAST, ROOT
from vpipe_cli.container import build, store
from vpipe_cli.container.build import prepare
from vpipe_cli.container.definition import read
from vpipe_cli.container.store import Image
from worker.errors import ImageError, PreflightError, UsageError

DEFINITION = """\
Bootstrap: localimage
From: {{ FROM }}
%arguments
    FROM=nowhere
    GREETING=hello
%files
    note.txt /opt/note
%post
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VPIPE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def write(folder: Path, post: str = "echo {{ GREETING }}; cat /opt/note") -> Path:
    (folder / "note.txt").write_text("a note\n")
    path = folder / "x.def"
    path.write_text(DEFINITION + "    " + post + "\n")
    return path


def test_built_once_and_again_only_for_a_reason(home: Path, tmp_path: Path, tiny_base: Path) -> None:
    path, lines = write(tmp_path, "printf 'caf\\351\\n' >&2; cat /opt/note; echo {{ GREETING }}"), []
    arguments = {"FROM": str(tiny_base), "GREETING": "good morning, all"}
    made = prepare(str(path), arguments, lines.append, FAST)
    assert made.built and made.path == home / "images" / f"{made.sha256}.sif"
    assert {"a note", "caf\ufffd", "good morning, all"} <= set(lines)
    assert store.digest(made.path) == made.sha256
    assert list((home / "tmp").iterdir()) == []
    lines.clear()
    again = prepare(str(path), arguments, lines.append, FAST)
    assert (again.path, again.built, lines) == (made.path, False, [])
    (tmp_path / "note.txt").write_text("another note\n")
    assert prepare(str(path), arguments, lines.append, FAST).built and "another note" in lines


def test_a_failed_build_says_its_last_lines(home: Path, tmp_path: Path, tiny_base: Path) -> None:
    path = write(tmp_path, "for i in $(seq 9000); do echo line $i >&2; done; set +x; echo '[/red] no luck'; nonesuch")
    with pytest.raises(ImageError) as caught:
        prepare(str(path), {"FROM": str(tiny_base)}, options=FAST)
    first, *last = caught.value.message.splitlines()
    assert (first, caught.value.exit_code) == (f"building {path} failed; its last lines:", 106)
    assert len(last) == build.LAST and "[/red] no luck" in last and any("nonesuch: not found" in line for line in last)
    assert list((home / "images").glob("*.sif")) == list((home / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "note.txt").write_text("a note, changed\n"),
        lambda folder: (folder / "note.txt").chmod(0o755),
        lambda folder: (folder / "x.def").write_text((folder / "x.def").read_text() + "\n"),
        lambda folder: (folder / "base" / "etc" / "issue").write_text("new"),
        lambda folder: (folder / "base" / "link").symlink_to("/etc"),
    ],
)
def test_the_key_knows_everything_that_goes_in(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = write(tmp_path)
    (tmp_path / "base" / "etc").mkdir(parents=True)
    (tmp_path / "note.txt").chmod(0o644)

    def key(runtime: str = "1.4.5", **arguments: str) -> str:
        return read(path, {"FROM": str(tmp_path / "base"), **arguments}).key(runtime)

    before = key()
    assert key() == before == key(GREETING="hello")
    assert before not in {key("1.4.6"), key(GREETING="hi")}
    change(tmp_path)
    assert key() != before


def test_what_is_asked_for_wrongly(home: Path, tmp_path: Path) -> None:
    path = write(tmp_path)
    wrong: list[tuple[str, dict[str, str], type[Exception], str]] = [
        (str(tmp_path / "none.def"), {}, ImageError, "cannot be read: No such file"),
        (str(tmp_path / "none.sif"), {}, ImageError, "cannot be read: No such file"),
        (str(path), {"GREETNG": "x"}, UsageError, "has no {{ GREETNG }}\n  the names in it: FROM, GREETING"),
        (str(path), {"GREETING": "x\n%post\n  rm -rf /"}, UsageError, "has a control character in GREETING"),
        (str(path), {"FROM": str(tmp_path / "gone")}, ImageError, "gone: there is no such file"),
        ("docker://python:3.11", {}, UsageError, "may come to mean another image; add @sha256: and its digest"),
        ("library://x/y@sha256:" + "0" * 64, {}, UsageError, "of registries only docker://"),
        ("rootfs", {}, UsageError, "neither .def, .sif nor docker://"),
    ]
    (tmp_path / "not.sif").write_text("#!/bin/sh\n")
    wrong.append((str(tmp_path / "not.sif"), {}, ImageError, "is no SIF image"))
    for image, arguments, kind, said in wrong:
        with pytest.raises(kind) as caught:
            prepare(image, arguments)
        assert said in str(caught.value), image


def test_without_a_program_it_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    (tmp_path / "base").mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(PreflightError, match="needs Apptainer") as caught:
            prepare(str(path), {"FROM": str(tmp_path / "base")})
        assert caught.value.exit_code == 104 and "install" in caught.value.hint
    fake = tmp_path / "apptainer"
    fake.write_text("#!/bin/sh\necho apptainer version 1.4.5\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PreflightError, match="spython") as caught:
        prepare(str(path), {"FROM": str(tmp_path / "base")})
    assert (caught.value.exit_code, caught.value.hint) == (104, "pip install spython")


def test_too_little_room_is_said_first(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.setattr(build, "ROOM", 1 << 60)
    monkeypatch.setattr(build, "find_runtime", lambda: "true")
    with pytest.raises(PreflightError, match=r"a build needs \d+ GiB in .*/home/tmp, which has") as caught:
        prepare(str(write(tmp_path)), {"FROM": str(tmp_path / "base")})
    assert "APPTAINER_TMPDIR" in caught.value.hint


def test_what_a_killed_build_left_is_removed(home: Path, tmp_path: Path, tiny_base: Path) -> None:
    left = home / "tmp" / f"build-{int(Path('/proc/sys/kernel/pid_max').read_text()) + 1}-x"
    (left / "rootfs").mkdir(parents=True)
    (left / "rootfs").chmod(0o000)
    prepare(str(write(tmp_path)), {"FROM": str(tiny_base)}, options=FAST)
    assert not left.exists()


def test_a_finished_image_is_taken_as_it_is(home: Path, small_image: Image) -> None:
    made = prepare(str(small_image.path), {})
    assert (made.path, made.sha256, made.built) == (small_image.path, small_image.sha256, False)


def test_a_damaged_image_is_built_anew(home: Path, tmp_path: Path, tiny_base: Path) -> None:
    path, arguments = write(tmp_path), {"FROM": str(tiny_base)}
    made = prepare(str(path), arguments, options=FAST)
    made.path.chmod(0o600)
    with made.path.open("r+b") as file:
        file.seek(made.size // 2)
        file.write(b"damaged")
    assert prepare(str(path), arguments, options=FAST).built


def test_the_worker_image_has_what_a_rank_imports(worker_image: Image) -> None:
    source = (ROOT / "containers" / "cpu.def").read_text()
    assert worker_image.source.endswith("containers/cpu.def") and "torch" in source
    assert worker_image.size > 100 << 20


def test_both_definitions_differ_in_little(tmp_path: Path) -> None:
    cpu, cuda = ((ROOT / "containers" / f"{kind}.def").read_text() for kind in ("cpu", "cuda"))
    assert read(ROOT / "containers" / "cuda.def", {"INDEX": "x"}).values["BOOTSTRAP"] == "docker"
    assert (
        "requirements.txt /opt/vpipe/requirements.txt" in cpu and "requirements.txt /opt/vpipe/requirements.txt" in cuda
    )
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    for line in (ROOT / "containers" / "requirements.txt").read_text().splitlines():
        name, equals, version = line.partition("==")
        assert not equals or pins.get(name, version) == version, line
