"""Images built: through spython, without root, and only when something changed that goes into them.

spython runs in a process of its own (``python -m vpipe_cli.container.build``), because it prints, exits, and returns
None for a failed build. On that process's PATH stands a small ``singularity``, the one name spython knows, that starts
the Apptainer found here with both outputs as one; so nothing waits for a pipe that nobody reads.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vpipe_cli.container import store
from vpipe_cli.container.definition import Definition, read
from vpipe_cli.container.store import Image
from vpipe_cli.runs.store import home, made
from vpipe_cli.sanitize import clean
from worker.errors import ImageError, PreflightError, UsageError
from worker.spec.container import image_problem

Line = Callable[[str], None]
"""Told each line the build prints."""
RUNTIMES = ("apptainer", "singularity")
ROOM = 3 << 30
"""Bytes a build needs at least: the unpacked image, and the image."""
LAST = 25
INSTALL = "apptainer.org tells how to install it, without root too; `container.image` can also name a finished .sif"


def prepare(
    image: str,
    arguments: Mapping[str, str],
    line: Line | None = None,
    options: Sequence[str] = (),
    *,
    force: bool = False,
) -> Image:
    """The image that ``container.image`` names, built if it must be.

    Args:
        line: told what the build prints.
        options: more options of ``apptainer build``.
        force: build even if nothing changed here; the base image may have, in its registry.
    Raises:
        UsageError: no image can be named so.
        PreflightError: no Apptainer or no spython here, or too little room on the disk.
        ImageError: the build failed, with its last lines; or the file is no image.
    """
    if problem := image_problem(image):
        raise UsageError(f"the image {problem}")
    if image.endswith(".sif") and "://" not in image:
        return store.finished(Path(image).absolute())
    definition = Definition(image) if "://" in image else read(Path(image), arguments)
    runtime = find_runtime()
    key = definition.key(" ".join([_version(runtime), *options]))
    if not force and (found := store.built(key)):
        return found
    return _build(definition, key, runtime, line or (lambda _: None), options)


def find_runtime() -> str:
    """The Apptainer, or else Singularity, of this machine. Raises PreflightError if there is none."""
    for name in RUNTIMES:
        if found := shutil.which(name):
            return found
    raise PreflightError("building an image needs Apptainer, which is not on the PATH here", INSTALL)


def _version(runtime: str) -> str:
    done = subprocess.run([runtime, "--version"], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise PreflightError(f"{runtime} does not run: {(done.stderr or done.stdout).strip()[-300:]}", INSTALL)
    return done.stdout.strip()


def _build(definition: Definition, key: str, runtime: str, line: Line, options: Sequence[str]) -> Image:
    if importlib.util.find_spec("spython") is None:
        raise PreflightError("building an image needs the Python package spython", "pip install spython")
    made("images")
    with _workspace() as place:
        fresh = place / "image.sif"
        request = _request(definition, fresh, place, options)
        last = _run(request, definition.folder, _variables(place, runtime), line)
        if not fresh.is_file():
            raise ImageError(f"building {definition.source} failed; its last lines:\n" + "\n".join(last), _hint(last))
        return store.keep(fresh, key, definition.source)


@contextmanager
def _workspace() -> Iterator[Path]:
    """A folder for one build, removed after it, on a disk with room. Raises PreflightError if there is too little."""
    parent = Path(os.environ.get("APPTAINER_TMPDIR") or home() / "tmp")
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in dict.fromkeys([parent, store.folder()]):
        if (free := shutil.disk_usage(folder).free) < ROOM:
            message = f"a build needs {ROOM >> 30} GiB in {folder}, which has {free / 2**30:.1f}"
            raise PreflightError(message, "APPTAINER_TMPDIR names another place; `vpipe image prune` makes room")
    for left in parent.glob("build-*"):
        if not Path("/proc", left.name.split("-")[1]).exists():  # its vpipe was killed
            _remove(left)
    place = Path(tempfile.mkdtemp(prefix=f"build-{os.getpid()}-", dir=parent))
    try:
        yield place
    finally:
        _remove(place)


def _remove(place: Path) -> None:
    """Remove what a build left, folders without write permission too."""
    for top, folders, _ in os.walk(place):
        for name in folders:
            with suppress(OSError):
                os.chmod(os.path.join(top, name), 0o700, follow_symlinks=False)
    shutil.rmtree(place, ignore_errors=True)


def _request(definition: Definition, fresh: Path, place: Path, options: Sequence[str]) -> dict[str, object]:
    arguments = place / "arguments"
    arguments.write_text("".join(f"{name}={value}\n" for name, value in definition.arguments.items()))
    given = ["--build-arg-file", str(arguments)] if definition.arguments else []
    fakeroot = ["--fakeroot"] if definition.text else []
    return {"recipe": definition.source, "image": str(fresh), "options": [*fakeroot, *given, *options]}


def _variables(place: Path, runtime: str) -> dict[str, str]:
    shim = place / "bin" / "singularity"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(runtime)} "$@" 2>&1\n')
    shim.chmod(0o700)
    cache = os.environ.get("APPTAINER_CACHEDIR") or str(home() / "cache" / "apptainer")
    own = {"APPTAINER_TMPDIR": str(place), "APPTAINER_CACHEDIR": cache, "TMPDIR": str(place), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **own, "PATH": f"{shim.parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _run(request: dict[str, object], folder: Path, variables: dict[str, str], line: Line) -> list[str]:
    """Run the build to its end; its last lines. Whatever ends this call ends the build."""
    command = [sys.executable, "-m", "vpipe_cli.container.build", json.dumps(request)]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**variables, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=LAST)
    assert process.stdout
    try:
        with process.stdout as output:
            for raw in output:
                if text := clean(raw.rstrip(b"\n")).rstrip():
                    last.append(text)
                    line(text)
        process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    return list(last)


def _hint(last: Sequence[str]) -> str:
    said = "\n".join(last)
    if "No space left on device" in said:
        return "APPTAINER_TMPDIR names a place with more room"
    if "fakeroot" in said or "user namespace" in said:
        return "without root a build needs user namespaces; `vpipe doctor` looks at them, or name a finished .sif"
    return ""


def main(argument: str) -> int:
    """Let spython build what the request says. It returns None, or exits, when that failed."""
    from spython.main import Client

    request = json.loads(argument)
    done = Client.build(request["recipe"], request["image"], sudo=False, options=request["options"], quiet=True)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
