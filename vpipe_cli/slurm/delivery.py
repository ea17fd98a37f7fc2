"""Code and image of a launch, put where all nodes read them."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator

from vpipe_cli.container.build import prepare
from vpipe_cli.container.code import Bundle, ship_code
from vpipe_cli.container.ship import Progress, ship
from vpipe_cli.container.store import share
from vpipe_cli.onhost.send import ask as ask_host
from vpipe_cli.shipped import code, user_code, user_folder
from vpipe_cli.transport.base import Transport
from vpipe_cli.transport.local import LocalTransport
from worker.errors import PreflightError
from worker.spec.cluster import ClusterSpec

CODE_LIMIT = 120.0


def bring(root: str, spec: ClusterSpec) -> None:
    """Put what a job needs below ``root`` on this machine. Raises PreflightError."""
    for bundle in _bundles(spec):
        _unpack(root, bundle)
    os.makedirs(os.path.join(root, "cache"), 0o700, exist_ok=True)
    if spec.container is not None:
        image = prepare(spec.container.image, spec.container.build_args)
        share(image.path, image.sha256, root)


def send(login: Transport, spec: ClusterSpec, progress: Progress | None) -> None:
    """The same on a login node, below the root that it has there. Raises TransferError, ImageError, UnreachableError.

    Args:
        progress: told how far the image is.
    """
    hosts = {login.host: login}
    for bundle in _bundles(spec):
        ship_code(hosts, bundle)
    if spec.container is not None:
        image = prepare(spec.container.image, spec.container.build_args)
        ship(hosts, image.path, image.sha256, progress)


def _bundles(spec: ClusterSpec) -> Iterator[Bundle]:
    """vpipe's code, and the user's where the job has some."""
    yield code()
    if folder := user_folder(spec):
        yield user_code(folder)


def _unpack(root: str, bundle: Bundle) -> None:
    here = LocalTransport()
    place = {"digest": bundle.digest, "root": root}
    if ask_host(here, "code", {"do": "has", **place}, timeout=CODE_LIMIT).get("here"):
        return
    files = [[each.name, each.executable, base64.b64encode(each.content).decode()] for each in bundle.members]
    answer = ask_host(here, "code", {"do": "unpack", "files": files, **place}, timeout=CODE_LIMIT)
    if "error" in answer:
        raise PreflightError(f"the code could not be written below {root}: {answer['error']}")
