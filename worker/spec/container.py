"""The section ``container`` of cluster.yml: the image ranks run in, and the folders of the machine they see in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, NamedTuple

from pydantic import Field

from worker.spec.section import Misfit, Section

PINNED = re.compile(r"docker://[A-Za-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}")
"""An image in a registry, named by what it is and not by a tag that may come to mean another."""
ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN = ("/proc", "/sys", "/dev", "/etc/hosts", "/.singularity.d")
"""Places of an image that are filled already."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Bind(NamedTuple):
    """A folder or file of the machine and where a rank sees it."""

    source: str
    target: str
    writable: bool = False


class ContainerSpec(Section):
    """The image of the ranks, and what of the machine they see in it: the folders named here and nothing else."""

    image: Annotated[str, Field(min_length=1)] = Field(
        description="a definition (.def) that vpipe builds, a finished image (.sif), or docker://NAME@sha256:DIGEST"
    )
    nv: bool | None = Field(None, description="bring in the NVIDIA driver; default: where the rank has a GPU")
    binds: list[str] = Field(
        [], description="SOURCE[:TARGET[:ro|rw]]: a path of every machine, and where ranks see it; ro unless it says rw"
    )
    build_args: dict[str, str] = Field({}, description="values for the {{ NAME }}s of the definition")

    def misfits(self) -> Iterator[Misfit]:
        """Kinds of image, forms of binds, names of arguments."""
        if problem := image_problem(self.image):
            yield Misfit(problem, ("image",))
        if self.build_args and not self.image.endswith(".def"):
            yield Misfit("belongs to an image that is a definition, .def", ("build_args", "image"))
        for name, value in self.build_args.items():
            if problem := argument_problem(name, value):
                yield Misfit(problem, ("build_args",))
        targets: dict[str, str] = {}
        for entry in self.binds:
            try:
                target = parse_bind(entry).target
            except ValueError as error:
                yield Misfit(str(error), ("binds",))
                continue
            if target in targets:
                yield Misfit(f"has {targets[target]!r} and {entry!r}, which are at the same place", ("binds",))
            targets[target] = entry

    @property
    def mounts(self) -> tuple[Bind, ...]:
        """``binds``, taken apart."""
        return tuple(map(parse_bind, self.binds))


def parse_bind(text: str) -> Bind:
    """``SOURCE[:TARGET[:ro|rw]]`` as a Bind. Raises ValueError with what is wrong, in words that follow ``binds``."""
    if _CONTROL.search(text):
        raise ValueError(f"has a control character in {text!r}")
    source, _, rest = text.partition(":")
    target, colon, mode = rest.partition(":")
    target = target or source
    if colon and mode not in ("ro", "rw"):
        raise ValueError(f"has {text!r}, which must be SOURCE, SOURCE:TARGET, SOURCE:TARGET:ro or SOURCE:TARGET:rw")
    for path in (source, target):
        if "," in path or '"' in path or "\\" in path:
            raise ValueError(f"has {text!r}; a path there can hold no comma, quote or backslash")
        if not path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"has {text!r}; {path!r} must be an absolute path without `..`")
    target = "/" + "/".join(part for part in target.split("/") if part not in ("", "."))
    if target == "/" or any(target == own or target.startswith(own + "/") for own in OWN):
        raise ValueError(f"has {text!r}; {target} of an image is its own")
    return Bind(source, target, mode == "rw")


def image_problem(image: str) -> str:
    """Why ``image`` cannot be one, in words that follow the key; empty if it can."""
    if _CONTROL.search(image) or image.startswith("-"):
        return f"cannot be {image!r}"
    if "://" in image:
        if PINNED.fullmatch(image):
            return ""
        if image.startswith("docker://"):
            return f"is {image}, which may come to mean another image; add @sha256: and its digest"
        return f"is {image}; of registries only docker://NAME@sha256:DIGEST is known"
    return "" if image.endswith((".def", ".sif")) else f"is {image!r}, which is neither .def, .sif nor docker://"


def argument_problem(name: str, value: str) -> str:
    """Why a build argument cannot be one, in words that follow ``build_args``; empty if it can."""
    if not ARGUMENT.fullmatch(name):
        return f"has {name!r}, which is no name: letters, digits and _"
    return f"has a control character in {name}" if _CONTROL.search(value) else ""
