"""A command in the place of a rank: its machine, environment, folder and container."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import BinaryIO

from vpipe_cli.onhost import send
from vpipe_cli.onhost.execute import FRAME
from vpipe_cli.runs.places import Place, reached
from vpipe_cli.runs.store import Run
from vpipe_cli.transport.base import Channel
from worker.errors import UnreachableError

START_LIMIT = 15.0
SILENCE = 3600.0
"""Seconds a command may say nothing; a dead connection is noticed much earlier, by the transport."""


def execute(run: Run, place: Place, argv: Sequence[str]) -> int:
    """Run ``argv`` there, its output passed on as it comes. Returns its exit status, 128 + n after signal n.

    Raises:
        UnreachableError: the host does not answer, or the connection broke; the command is ended there.
    """
    command = [*place.container, *argv]
    if place.here:
        return _here(place, command)
    with reached(run, [place.host]) as hosts:
        request = {"argv": command, "cwd": place.cwd, "env": place.env, "inherit": place.inherit}
        channel = send.start(hosts[place.host], "execute", request, timeout=START_LIMIT)
        try:
            return _pass_on(place.host, channel, sys.stdout.buffer, sys.stderr.buffer)
        finally:
            channel.close()


def _here(place: Place, command: Sequence[str]) -> int:
    inherited = {name: os.environ[name] for name in place.inherit if name in os.environ}
    sys.stdout.flush()
    try:
        code = subprocess.call(command, cwd=place.cwd, env={**inherited, **place.env})
    except OSError as error:
        print(f"{command[0]}: {error.strerror or error}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    return code if code >= 0 else 128 - code


def _pass_on(host: str, channel: Channel, out: BinaryIO, err: BinaryIO) -> int:
    """Write what the frames hold where it belongs, until the one with the exit status."""
    unread = b""
    while True:
        piece = channel.read(SILENCE)
        if not piece:
            raise UnreachableError(f"{host}: the connection broke before the command had ended")
        unread += piece
        while len(unread) >= FRAME.size:
            stream, size = FRAME.unpack_from(unread)
            end = FRAME.size + size
            if len(unread) <= end:  # a line break follows
                break
            data, unread = unread[FRAME.size : end], unread[end + 1 :]
            if stream == 0:
                return int(data)
            target = out if stream == 1 else err
            target.write(data)
            target.flush()
