"""Code and image of a launch, put where all nodes read them."""

from __future__ import annotations

import base64
import os
import shutil

from vpipe_cli.container.build import prepare
from vpipe_cli.container.code import Bundle
from vpipe_cli.onhost.send import ask as ask_host
from vpipe_cli.shipped import code, user_code, user_folder
from vpipe_cli.transport.local import LocalTransport
from worker.errors import PreflightError
from worker.spec.cluster import ClusterSpec
from worker.spec.container import ContainerSpec

CODE_LIMIT = 120.0


def bring(root: str, spec: ClusterSpec) -> None:
    """Put what a job needs below ``root`` on this machine. Raises PreflightError."""
    for bundle in [code(), *([user_code(folder)] if (folder := user_folder(spec)) else [])]:
        _unpack(root, bundle)
    os.makedirs(os.path.join(root, "cache"), 0o700, exist_ok=True)
    if spec.container is not None:
        _share(root, spec.container)


def _unpack(root: str, bundle: Bundle) -> None:
    here = LocalTransport()
    place = {"digest": bundle.digest, "root": root}
    if ask_host(here, "code", {"do": "has", **place}, timeout=CODE_LIMIT).get("here"):
        return
    files = [[each.name, each.executable, base64.b64encode(each.content).decode()] for each in bundle.members]
    answer = ask_host(here, "code", {"do": "unpack", "files": files, **place}, timeout=CODE_LIMIT)
    if "error" in answer:
        raise PreflightError(f"the code could not be written below {root}: {answer['error']}")


def _share(root: str, container: ContainerSpec) -> None:
    """Give the image its name among those of ``root``: a link where that can be, else a copy."""
    image = prepare(container.image, container.build_args)
    target = os.path.join(root, "images", f"{image.sha256}.sif")
    if os.path.exists(target):
        return
    os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
    aside = f"{target}.{os.getpid()}"
    try:
        os.link(image.path, aside)
    except OSError:  # another disk
        shutil.copyfile(image.path, aside)
    os.replace(aside, target)
