"""Runs one command in the place of a rank, and hands over what it prints as it comes.

Python 3.8, standard library only. Its environment comes on standard input with this program, never in an
argv. It ends when the client goes away.
"""

from __future__ import annotations

import os
import selectors
import signal
import struct
import subprocess
import sys
from typing import Any, Dict

FRAME = struct.Struct(">BI")  # which stream (0: the end, with its exit status), how many bytes
GRACE = 2.0


def main(request: Dict[str, Any]) -> None:
    """``argv``, ``cwd``, ``env``; ``inherit``: names of variables to take over from this machine's own environment."""
    env = {name: os.environ[name] for name in request["inherit"] if name in os.environ}
    out = sys.stdout.buffer
    try:
        process = subprocess.Popen(
            request["argv"],
            env={**env, **request["env"]},
            cwd=request["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        send(out, 2, ("%s: %s\n" % (request["argv"][0], error.strerror or error)).encode())
        send(out, 0, b"127" if isinstance(error, FileNotFoundError) else b"126")
        return
    assert process.stdout and process.stderr
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, 1)
        selector.register(process.stderr, selectors.EVENT_READ, 2)
        selector.register(0, selectors.EVENT_READ, 0)
        open_pipes = 2
        while open_pipes:
            for key, _ in selector.select():
                data = os.read(key.fd, 65536)
                if key.data == 0 and not data:  # the client is gone
                    end(process)
                    return
                if key.data and data:
                    send(out, key.data, data)
                elif key.data:
                    selector.unregister(key.fileobj)
                    open_pipes -= 1
    code = process.wait()
    send(out, 0, str(code if code >= 0 else 128 - code).encode())


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the command and all it started to end, then make them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except (ProcessLookupError, PermissionError):
            return
        except subprocess.TimeoutExpired:
            continue


def send(out: Any, stream: int, data: bytes) -> None:
    """One frame, at once. It ends with a line break, for Slurm's srun passes on whole lines."""
    out.write(FRAME.pack(stream, len(data)) + data + b"\n")
    out.flush()
