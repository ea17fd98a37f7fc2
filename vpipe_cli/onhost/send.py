"""Sends the programs of this package to a host and reads what they answer."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from vpipe_cli.transport.base import Channel, Transport
from worker.errors import PreflightError

HERE = Path(__file__).parent
LOADER = (
    "import json;exec(compile(json.loads(open(0,'rb',0,closefd=False).readline()),'vpipe','exec'),{'__name__':'vpipe'})"
)
BEGIN = """
def begin(modules, request):
    import sys, types
    for name, text in modules.items():
        module = sys.modules[name] = types.ModuleType(name)
        exec(compile(text, name, "exec"), module.__dict__)
    module.main(request)
"""
PACKAGE = "vpipe_cli.onhost."
IMPORTED = re.compile(r"^from vpipe_cli\.onhost\.(\w+) import", re.MULTILINE)
NO_PYTHON = (126, 127)


class NoPython(PreflightError):
    """The host has no ``python3`` to run anything with."""


def ask(transport: Transport, program: str, request: object, *, timeout: float) -> Any:
    """Run a program to its end on a host, in one round trip; the JSON value it answers.

    Args:
        program: the name of a module of this package, or the path of a source file.
    Raises:
        NoPython: the host has no python3, or one older than 3.8.
        PreflightError: the program failed there; the message has its last line.
        UnreachableError, TimeoutError: as ``Transport.run``.
    """
    ended = transport.run([*_python(transport), "-"], stdin=source(program, request), timeout=timeout)
    said = (ended.stderr or ended.stdout).decode(errors="replace").strip().splitlines()
    if ended.code in NO_PYTHON:
        raise NoPython(f"{transport.host}: no python3: {said[-1] if said else 'command not found'}", NEEDED)
    if b"SyntaxError" in ended.stderr:
        raise NoPython(f"{transport.host}: its python3 is older than 3.8", NEEDED)
    try:
        return json.loads(ended.stdout)
    except ValueError:
        how = f"exit status {ended.code}" if ended.code is not None else "killed, or cut off"
        raise PreflightError(f"{transport.host}: {program}: {said[-1] if said else how}") from None


NEEDED = "vpipe needs Python 3.8 or newer there, as `python3` on the PATH of a command over ssh"


def start(transport: Transport, program: str, request: object, *, timeout: float) -> Channel:
    """Start a program on a host that goes on reading its input and writing its output. Raises as ``Transport.open``."""
    channel = transport.open([*_python(transport), "-c", LOADER], timeout=timeout)
    channel.write(json.dumps(source(program, request).decode()).encode() + b"\n")
    return channel


def source(program: str, request: object) -> bytes:
    """The program, the modules of this package it imports, and its request: one text of Python.

    All of them are data in it, so that no string of the request is ever code, and each module has its own name.
    """
    path = HERE / f"{program}.py" if "/" not in program else Path(program)
    sent = json.dumps([_modules(path, {}), request])
    return f"{BEGIN}begin(*__import__('json').loads({sent!r}))\n".encode()


def _modules(path: Path, found: dict[str, str]) -> dict[str, str]:
    """The sources of a module and of those of this package that it imports, which come first."""
    text = path.read_text()
    for name in IMPORTED.findall(text):
        if PACKAGE + name not in found:
            _modules(HERE / f"{name}.py", found)
    found[PACKAGE + path.stem] = text
    return found


def _python(transport: Transport) -> list[str]:
    """Isolated: no site packages, no PYTHON* variables, no files of the folder it starts in."""
    return [sys.executable if transport.host == "localhost" else "python3", "-I", "-S"]
