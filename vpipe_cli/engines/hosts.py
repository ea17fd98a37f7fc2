"""The client's end of ``worker/hostfiles.py``: one channel to each host of a run, through which everything goes.

    with HostFiles(transport) as host:
        root = host.ask("where")["root"]
        answer, data = host.exchange("sync", folder=..., ...)

One request at a time; every one has a deadline, after which the channel is of no use any more.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from vpipe_cli.onhost import send
from vpipe_cli.transport.base import Transport
from worker import errors
from worker.errors import PreflightError, UnreachableError
from worker.spec.cluster import ClusterSpec

SERVER = Path(errors.__file__).with_name("hostfiles.py")
ANSWER_LIMIT = 15.0  # seconds


class HostFiles:
    """What a client does with the files of a run on one host. Raises UnreachableError once the host does not answer."""

    def __init__(self, transport: Transport) -> None:
        self.host = transport.host
        try:
            self._channel = send.start(transport, str(SERVER), None, timeout=ANSWER_LIMIT)
        except TimeoutError as error:
            raise UnreachableError(f"{self.host}: {error}") from None
        self._unread = b""

    def __enter__(self) -> HostFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the channel, and with it the server."""
        self._channel.close()

    def ask(self, op: str, timeout: float = ANSWER_LIMIT, **fields: Any) -> dict[str, Any]:
        """The answer to one request, where it comes without further bytes."""
        return self.exchange(op, timeout, **fields)[0]

    def exchange(self, op: str, timeout: float = ANSWER_LIMIT, **fields: Any) -> tuple[dict[str, Any], bytes]:
        """The answer to one request, and the bytes that come with it.

        Raises:
            UnreachableError: the host did not answer in time, or the connection broke.
            PreflightError: the host could not do it; the message says why.
        """
        try:
            self._channel.write(json.dumps({"op": op, **fields}).encode() + b"\n")
            deadline = time.monotonic() + timeout
            answer = json.loads(self._line(deadline))
            data = self._bytes(answer["size"], deadline)
        except (TimeoutError, ValueError) as error:
            raise UnreachableError(f"{self.host} does not answer: {error}") from None
        if "error" in answer:
            raise PreflightError(f"{self.host}: {answer['error']}")
        return answer, data

    def must_have(self, spec: ClusterSpec, hint: str) -> None:
        """What the first stage of a job reads. Inside a container the binds decide, and the rank says so.

        Raises:
            PreflightError: something is not there; with the ``hint``.
        """
        named = {key: getattr(spec.data, key, None) for key in ("path", "target_path")}
        paths = {key: path for key, path in named.items() if path}
        if not paths or spec.container is not None:
            return
        there = self.ask("have", paths=list(paths.values()))["there"]
        for key, path in paths.items():
            if path not in there:
                raise PreflightError(f"{self.host}: data.{key}: no such file or folder: {path!r}", hint)

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._unread:
            self._more(deadline)
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _bytes(self, size: int, deadline: float) -> bytes:
        pieces, have = [self._unread], len(self._unread)
        while have < size:
            piece = self._read(deadline)
            pieces.append(piece)
            have += len(piece)
        whole = b"".join(pieces)
        self._unread = whole[size:]
        return whole[:size]

    def _more(self, deadline: float) -> None:
        self._unread += self._read(deadline)

    def _read(self, deadline: float) -> bytes:
        piece = self._channel.read(max(0.01, deadline - time.monotonic()))
        if not piece:
            raise UnreachableError(f"{self.host}: the connection broke, or it has no python3 to answer with")
        return piece
