"""What tests build and run containers with, made once, kept in ~/.cache/vpipe-tests. Imported by tests/conftest.py.

``image_base`` is a folder to build from, ``small_image`` an image of nothing more. ``worker_image`` is that of
containers/cpu.def, built by vpipe as a user would, but for base and wheels, which are this machine's, and a fast
compression.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from vpipe_cli.container.build import prepare
from vpipe_cli.container.store import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vpipe-tests"
FAST = ("--mksquashfs-args", "-comp lz4")
A_WEEK = 7 * 86400.0
REQUIREMENTS = ROOT / "containers" / "requirements.txt"


def lacks() -> str:
    """What this machine lacks to run containers; empty if nothing."""
    return "" if shutil.which("apptainer") else "apptainer"


def lacks_base() -> str:
    """What it lacks to make a base for them."""
    if lacks() or shutil.which("debootstrap") is None:
        return lacks() or "debootstrap"
    return "root" if os.geteuid() != 0 else ""


@pytest.fixture(scope="session")
def image_base() -> Path:
    """A minimal Debian with Python as a folder."""
    if missing := lacks_base():
        pytest.skip(f"a base for images needs {missing}")
    return make_base()


def make_base() -> Path:
    """The base, from the cache if it is there."""
    return _made("base", _digest(HERE / "base", extra=platform.freedesktop_os_release()["VERSION"]), _debootstrap)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shell, ``cat`` and ``seq`` of this machine with their libraries, as a folder: enough to build from."""
    if missing := lacks():
        pytest.skip(f"building an image needs {missing}")
    folder = tmp_path_factory.mktemp("tiny")
    programs = [shutil.which(name) or name for name in ("sh", "cat", "seq")]
    linked = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    libraries = [word for word in linked.split() if word.startswith("/") and not word.endswith(":")]
    for name in (*programs, *libraries):
        target = folder / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, target)
    for name in ("bin", "lib64", "dev", "etc", "proc", "root", "sys", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    if not (folder / "bin" / "sh").exists():
        shutil.copy(programs[0], folder / "bin" / "sh")
    return folder


@pytest.fixture(scope="session")
def small_image(image_base: Path) -> Image:
    """A SIF with Python and nothing else."""
    return _built(HERE / "small.def", {"FROM": str(image_base)})


@pytest.fixture(scope="session")
def worker_image(image_base: Path) -> Image:
    """A SIF with all that ``python -m worker`` needs; torch for the CPU."""
    return make_worker_image(image_base)


def make_worker_image(image_base: Path) -> Image:
    """The image of the worker, from the cache if it is there."""
    python = next(image_base.glob("usr/bin/python3.*")).name.removeprefix("python")
    wheels = _made("wheels", _digest(REQUIREMENTS, extra=python), partial(_download, python))
    arguments = {"BOOTSTRAP": "localimage", "FROM": str(image_base), "WHEELS": str(wheels)}
    return _built(ROOT / "containers" / "cpu.def", arguments)


def _built(definition: Path, arguments: dict[str, str]) -> Image:
    with _locked(definition.stem), _home():
        image = prepare(str(definition), arguments, options=FAST)
        os.utime(image.path)
        for old in image.path.parent.glob("*.sif"):
            if time.time() - old.stat().st_mtime > A_WEEK:
                old.unlink(missing_ok=True)
    return image


def _debootstrap(target: Path) -> None:
    subprocess.run([str(HERE / "base"), str(target)], check=True)


def _download(python: str, target: Path) -> None:
    """The wheels of requirements.txt for the Python of the base, and pip, which a minimal Debian lacks."""
    aside = target.with_suffix(".new")
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(aside), "--only-binary=:all:"]
    command += ["--python-version", python, "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*command, "-r", str(REQUIREMENTS), "pip"], check=True)
    aside.rename(target)


def _made(name: str, digest: str, make: Callable[[Path], None]) -> Path:
    """``CACHE/name-digest``, made if it is not there; those of other digests go."""
    target = CACHE / f"{name}-{digest}"
    with _locked(name):
        if not target.exists():
            for old in CACHE.glob(f"{name}-*"):
                shutil.rmtree(old, ignore_errors=True)
            make(target)
    return target


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """One test session at a time makes a thing."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _home() -> Iterator[None]:
    """vpipe's own folder, for images that outlive the session."""
    before = os.environ.get("VPIPE_HOME")
    os.environ["VPIPE_HOME"] = str(CACHE / "home")
    try:
        yield
    finally:
        if before is None:
            del os.environ["VPIPE_HOME"]
        else:
            os.environ["VPIPE_HOME"] = before


def _digest(*paths: Path, extra: str) -> str:
    content = b"".join(path.read_bytes() for path in paths) + extra.encode()
    return hashlib.sha256(content).hexdigest()[:16]
