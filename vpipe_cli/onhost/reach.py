"""Which machines reach which, over which of their addresses: one listens for a few seconds, the others call.

Python 3.8, standard library only. Every answer carries the listener's token, because the same address may belong to
another machine (every host with Docker has 172.17.0.1) or to another program.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import threading
import time
from typing import Any, Dict, List, Optional, Tuple

PATIENCE = 3.0  # seconds for a connection and its answer


def main(request: Dict[str, Any]) -> None:
    """``{"listen": token, "addresses": [...], "seconds": n}`` or ``{"call": {host: {"token", "endpoints"}}}``."""
    if "listen" in request:
        listen(request["listen"].encode(), request["addresses"], request["seconds"])
    else:
        print(json.dumps(call(request["call"])))


def listen(token: bytes, addresses: List[str], seconds: float) -> None:
    """Say where this listens, then answer every call with the token, until the input ends or the time is over."""
    sockets, endpoints = [], []
    for address in addresses:
        try:
            server = socket.create_server((address, 0), backlog=256)
        except OSError:
            continue
        sockets.append(server)
        endpoints.append([address, server.getsockname()[1]])
    sys.stdout.write(json.dumps(endpoints) + "\n")
    sys.stdout.flush()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ready = select.select([*sockets, sys.stdin], [], [], max(0.0, deadline - time.monotonic()))[0]
        if sys.stdin in ready:
            break  # nobody writes: it is the end of the input
        for server in sockets:
            if server not in ready:
                continue
            connection, _ = server.accept()
            with connection:
                connection.sendall(token)


def call(targets: Dict[str, Dict[str, Any]]) -> Dict[str, Dict[str, Any]]:
    """For every host the address it answered at and the one this machine called from; or what happened at each."""
    found: Dict[str, Dict[str, Any]] = {host: {"failed": {}} for host in targets}
    lock = threading.Lock()

    def one(host: str, token: bytes, address: str, port: int) -> None:
        answer, problem = knock(token, address, port)
        with lock:
            if answer is None:
                found[host]["failed"][address] = problem
            else:
                found[host].setdefault("answered", []).append(answer)

    threads = [
        threading.Thread(target=one, args=(host, target["token"].encode(), address, port), daemon=True)
        for host, target in targets.items()
        for address, port in target["endpoints"]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    with lock:
        copied: Dict[str, Dict[str, Any]] = json.loads(json.dumps(found))
        return copied


def knock(token: bytes, address: str, port: int) -> Tuple[Optional[Dict[str, Any]], str]:
    """Connect and read the token. Returns where from and how fast, or None and why not."""
    began = time.monotonic()
    try:
        with socket.create_connection((address, port), PATIENCE) as connection:
            connected = time.monotonic()
            here = connection.getsockname()[0]
            said = b""
            while len(said) < len(token):
                piece = connection.recv(256)
                if not piece:
                    break
                said += piece
    except socket.timeout:
        return None, "no answer within %g s" % PATIENCE
    except OSError as error:
        return None, error.strerror or str(error)
    if said != token:
        return None, "another machine or program answers there"
    return {"address": address, "from": here, "seconds": connected - began}, ""
