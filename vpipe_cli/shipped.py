"""What ranks elsewhere or in a container need: the code as it is now, and the image, built if it must be."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vpipe_cli import profiles
from vpipe_cli.placing import Shipped, Sources
from worker import errors
from worker.errors import UsageError
from worker.spec.cluster import ClusterSpec
from worker.spec.container import ContainerSpec

if TYPE_CHECKING:
    from vpipe_cli.container.code import Bundle

NOT_BUILT = "not-built-yet"


def to_ship(spec: ClusterSpec, build: bool, line: Callable[[str], None] | None = None) -> Shipped | None:
    """Digests of code and image; None for the local engine, which sends nothing.

    Args:
        build: make the image if it is not there; otherwise it stays unnamed, as ``NOT_BUILT``.
        line: told what the build prints.
    Raises:
        ImageError, PreflightError: the image cannot be made or read.
    """
    if spec.engine == "local":
        return None
    image = _image(spec.container, build, line) if spec.container is not None else ""
    return Shipped(code().digest, image, user_code(folder).digest if (folder := user_folder(spec)) else "")


def inside_here(spec: ClusterSpec, build: bool, line: Callable[[str], None] | None = None) -> Sources | None:
    """What a container on this machine is given; None for a job without one, or of another engine.

    Args and Raises as ``to_ship``.
    """
    if spec.engine != "local" or spec.container is None:
        return None
    container, cache_folder = spec.container, str(profiles.cache().parent)
    image = NOT_BUILT
    if build or _is_there(container):
        from vpipe_cli.container.build import prepare

        image = str(prepare(container.image, container.build_args, line).path)
    folder = user_folder(spec)
    return Sources(image, str(Path(errors.__file__).parent), cache_folder, str(folder) if folder else "")


@cache
def code() -> Bundle:
    """vpipe's worker as it was when this was first asked for: what is planned is what is sent, whoever edits it."""
    from vpipe_cli.container.code import worker_bundle

    return worker_bundle()


def user_folder(spec: ClusterSpec) -> Path | None:
    """The folder that the job's own model and data are imported from, if any. Raises UsageError for two of them."""
    given: list[str] = [found for section in (spec.model, spec.data) if (found := getattr(section, "code", None))]
    if len(set(given)) > 1:
        raise UsageError(f"model.code is {given[0]} and data.code {given[1]}", "other machines are sent one folder")
    return Path(given[0]) if given else None


@cache
def user_code(folder: Path) -> Bundle:
    """A folder of the user's, as it was when this was first asked for. Raises UsageError if it cannot travel."""
    from vpipe_cli.container.code import folder_bundle

    return folder_bundle(folder)


def _image(container: ContainerSpec, build: bool, line: Callable[[str], None] | None) -> str:
    from vpipe_cli.container.build import prepare

    if build or _is_there(container):
        return prepare(container.image, container.build_args, line).sha256
    return NOT_BUILT


def _is_there(container: ContainerSpec) -> bool:
    """Whether the image is a finished one, a file."""
    return container.image.endswith(".sif") and "://" not in container.image and Path(container.image).exists()


def image_size(spec: ClusterSpec) -> int:
    """Bytes of the image of a job, which is there."""
    from vpipe_cli.container.build import prepare

    return prepare(spec.container.image, spec.container.build_args).size if spec.container else 0
