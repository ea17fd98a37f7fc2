"""One rank on one host: its exact argv, environment and files; on this machine, or on one that SSH reaches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from vpipe_cli.container import command
from vpipe_cli.machines import Slot
from worker.spec.cluster import ClusterSpec
from worker.spec.container import Bind, ContainerSpec
from worker.spec.files import RunFiles
from worker.spec.job import Placement

ROOT = "~/.vpipe"
"""Where vpipe keeps everything on a host that SSH reaches; $VPIPE_HOME there, where that is set."""

KEPT = frozenset(
    {"HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PYTHONPATH", "TMPDIR", "TZ", "USER"}
    | {"VPIPE_CACHE", "XDG_CACHE_HOME"}
)
"""Variables of the user's environment that ranks get, beside LC_*. No other one: secrets stay where they are."""

INHERITED = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER")
"""Variables that a rank without a container takes over from its own host's environment."""

OUTSIDE = ("HOME", "LANG", "PATH", "TMPDIR", "USER")
"""Variables of its host that the container's runtime itself gets; nothing of them is seen inside."""
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
"""torch warns of every machine whose address has no name, which means nothing here."""
USER_CODE = "VPIPE_CODE"
"""Names the folder of the user's own code to ``worker.entry``."""
INSIDE_RUN = "/vpipe/run"


@dataclass(frozen=True)
class Process:
    """What is executed for a rank. ``env_prefix`` and ``inherit`` are as ``launch.RankLaunch`` has them."""

    argv: list[str]
    env: dict[str, str]
    inherit: tuple[str, ...] = ()
    env_prefix: str = ""


@dataclass(frozen=True)
class Sources:
    """What of a machine a container gets to see, by its paths there: the image itself, code, cache."""

    image: str
    worker: str
    cache: str
    user_code: str = ""


@dataclass(frozen=True)
class Here:
    """What a process on this machine takes from it: the interpreter, the shell's environment and folder.

    ``inside`` is for a job that runs in a container here.
    """

    python: str
    environ: Mapping[str, str]
    folder: Path
    inside: Sources | None = None


def remote_files(run: str) -> RunFiles:
    """The files of a run on a host that SSH reaches."""
    return RunFiles(Path(ROOT) / "runs" / run)


def scratch_of(files: RunFiles, rank: int) -> Path:
    """What a rank in a container has as its /tmp; it must be there before it starts."""
    return files.folder / f"tmp/rank-{rank}"


def local_process(
    place: Placement, slot: Slot, files: RunFiles, attempt: int, here: Here, container: ContainerSpec | None = None
) -> Process:
    """A rank of the local engine, in a container if the job has one; else in this interpreter, with the user's
    environment as far as it is ``KEPT``."""
    if container is not None and here.inside is not None:
        return _contained(place, slot, container, files, attempt, here.inside, {"GLOO_SOCKET_IFNAME": "lo"})
    env = {name: value for name, value in here.environ.items() if name in KEPT or name.startswith("LC_")}
    if paths := env.get("PYTHONPATH"):  # ranks run in another folder than the shell this was typed in
        env["PYTHONPATH"] = os.pathsep.join(str(here.folder / path) for path in paths.split(os.pathsep))
    env |= {"GLOO_SOCKET_IFNAME": "lo", **_common(place, slot)}
    return Process(_argv(here.python, files, place.rank, attempt), dict(sorted(env.items())))


@dataclass(frozen=True)
class Shipped:
    """What a launch brings to other hosts, as digests: vpipe's code; the image and the user's code, if any."""

    code: str
    image: str = ""
    user_code: str = ""


def remote_process(
    place: Placement, slot: Slot, spec: ClusterSpec, run: str, attempt: int, shipped: Shipped
) -> Process:
    """A rank on a host that SSH reaches, in a container where the job has one."""
    if spec.container is not None:
        user_code = f"{ROOT}/code/{shipped.user_code}" if shipped.user_code else ""
        worker = f"{ROOT}/code/{shipped.code}/worker"
        sources = Sources(f"{ROOT}/images/{shipped.image}.sif", worker, f"{ROOT}/cache", user_code)
        return _contained(place, slot, spec.container, remote_files(run), attempt, sources)
    env = {"PYTHONPATH": f"{ROOT}/code/{shipped.code}", "VPIPE_CACHE": f"{ROOT}/cache", **QUIET, **_common(place, slot)}
    if shipped.user_code:
        env[USER_CODE] = f"{ROOT}/code/{shipped.user_code}"
    argv = _argv(spec.python, remote_files(run), place.rank, attempt)
    return Process(argv, dict(sorted(env.items())), INHERITED)


def _contained(
    place: Placement,
    slot: Slot,
    container: ContainerSpec,
    files: RunFiles,
    attempt: int,
    sources: Sources,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Process:
    """Inside, the places are the same on every machine: the run, the code and the cache below ``/vpipe``."""
    binds = [
        Bind(str(files.folder), INSIDE_RUN, True),
        Bind(sources.worker, "/vpipe/code/worker"),
        *([Bind(sources.user_code, "/vpipe/user-code")] if sources.user_code else []),
        Bind(sources.cache, "/vpipe/cache", True),
        *container.mounts,
    ]
    nv = slot.device != "cpu" if container.nv is None else container.nv
    inside = _argv("python3", RunFiles(Path(INSIDE_RUN)), place.rank, attempt)
    scratch = str(scratch_of(files, place.rank))
    argv = command.wrap(inside, sources.image, binds, nv=nv, workdir=INSIDE_RUN, scratch=scratch)
    env = {"PYTHONPATH": "/vpipe/code", "VPIPE_CACHE": "/vpipe/cache", **QUIET, **more, **_common(place, slot)}
    if sources.user_code:
        env[USER_CODE] = "/vpipe/user-code"
    return Process(argv, dict(sorted(command.environment(env, {}).items())), OUTSIDE, command.PREFIX)


def _argv(python: str, files: RunFiles, rank: int, attempt: int) -> list[str]:
    return [python, "-m", "worker", "--job", str(files.job), "--rank", str(rank), "--attempt", str(attempt)]


def _common(place: Placement, slot: Slot) -> dict[str, str]:
    env = {"OMP_NUM_THREADS": str(place.threads), "MKL_NUM_THREADS": str(place.threads)}
    env |= {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    if slot.device.startswith("cuda:"):
        env["CUDA_VISIBLE_DEVICES"] = slot.device.removeprefix("cuda:")
    return env
