"""Profiles: read from a file, or found where `vpipe profile` keeps what it measured."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from vpipe_cli.machines import Slot, is_local
from worker.errors import UsageError
from worker.planner import graph_txt
from worker.spec.cluster import ClusterSpec
from worker.spec.files import write_atomic
from worker.spec.profile import Profile, from_json, model_digest, read

LAUNCH_DEADLINE = 180.0
"""Seconds that a launch measures for, data preparation included."""


def load(path: Path) -> Profile:
    """A profile from a file: vpipe's JSON, or PipeDream's graph.txt.

    Raises:
        UsageError: it cannot be read, or something in it is wrong; names the place.
    """
    raw = read(path)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text in UTF-8") from None
    return graph_txt.read(text, str(path)) if graph_txt.looks_like(text) else from_json(text, str(path))


def cache() -> Path:
    """Where profiles are kept, beside prepared data: ``$VPIPE_CACHE``, or ``vpipe`` in the platform's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vpipe"
    return Path(os.environ.get("VPIPE_CACHE") or default) / "profiles"


def shape(spec: ClusterSpec, slots: Sequence[Slot]) -> tuple[str, int, int]:
    """The kind of device profiled here, how many processes share the machine, and threads of each."""
    device = slots[0].device
    processes = sum(slot.host == slots[0].host for slot in slots) if device == "cpu" else 1
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // max(1, processes)) if spec.run.threads == "auto" else spec.run.threads
    return device, min(processes, max(1, cores)), threads


def kept(spec: ClusterSpec, slots: Sequence[Slot]) -> Path:
    """The file of this job's profile: by model, shapes, device, threads, versions and machine."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "none"
    facts = [model_digest(spec), *shape(spec, slots), torch, platform.python_version(), platform.node()]
    if not is_local(slots):
        image = spec.container.image if spec.container else spec.python
        facts += [image, *((slot.host, slot.device) for slot in slots)]
    return cache() / f"{spec.name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.json"


def of_job(spec: ClusterSpec, slots: Sequence[Slot], deadline: float, quiet: bool = False) -> Profile:
    """The profile of a job: the file that planner.profile names, what was measured before, or a measurement now.

    Raises:
        UsageError: the file is of another model; or there is none, and none can be made within ``deadline`` seconds.
    """
    if spec.planner.profile not in ("auto", "none"):
        profile = load(Path(spec.planner.profile))
        if profile.model is not None and profile.model != model_digest(spec):
            raise UsageError(f"planner.profile: {spec.planner.profile} is a profile of another model", "measure again")
        return profile
    path = kept(spec, slots)
    if path.exists():
        return load(path)
    if not is_local(slots):
        message = f"this job was not profiled, and {slots[0].host} is another machine"
        raise UsageError(message, "run `vpipe profile` first: it measures there; or give `--profile FILE`")
    return measure(spec, slots, path, deadline, quiet=quiet)


def for_launch(spec: ClusterSpec, slots: Sequence[Slot]) -> Profile | None:
    """What a launch plans from: the file named, or what was measured here; None where operations are counted instead.

    It measures by itself only where it must: memory is limited, and how much to recompute is the planner's to choose.

    Raises:
        UsageError: the file is wrong or of another model; or it had to measure, and could not.
    """
    if spec.planner.profile == "none":
        return None
    if spec.planner.profile != "auto":
        return of_job(spec, slots, LAUNCH_DEADLINE)
    must = spec.pipeline.recompute_ratio == "auto" and spec.planner.memory is not None
    if kept(spec, slots).exists() or must:
        return of_job(spec, slots, LAUNCH_DEADLINE, quiet=True)
    return None


def measure(
    spec: ClusterSpec, slots: Sequence[Slot], path: Path, deadline: float, repeats: int = 5, quiet: bool = True
) -> Profile:
    """Measure a job's layers and links on its machines, in processes of their own, and keep the profile in ``path``.

    Raises:
        UsageError: torch is missing, the measurement failed, or it took longer than ``deadline`` seconds.
        PreflightError, UnreachableError: so on another machine.
    """
    found = _here(spec, slots, deadline, repeats, quiet) if is_local(slots) else _there(spec, slots, deadline, repeats)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(path, found.to_json())
    return found


def _there(spec: ClusterSpec, slots: Sequence[Slot], deadline: float, repeats: int) -> Profile:
    from vpipe_cli.measuring import Measuring

    if spec.engine != "ssh":
        hint = "run `vpipe profile --file profile.json` on a node, with machines there, and name it in planner.profile"
        raise UsageError(f"engine {spec.engine}: its machines cannot be reached to be measured", hint)
    threads = 1 if spec.run.threads == "auto" else spec.run.threads  # as a launch has it on other hosts
    return Measuring(spec, slots, threads, deadline, lambda text: print(text, file=sys.stderr)).profile(repeats)


def _here(spec: ClusterSpec, slots: Sequence[Slot], deadline: float, repeats: int, quiet: bool) -> Profile:
    """Measured on this machine."""
    device, processes, threads = shape(spec, slots)
    with tempfile.TemporaryDirectory(prefix="vpipe-profile-") as name:
        job, found = Path(name, "spec.json"), Path(name, "profile.json")
        job.write_text(spec.model_dump_json())
        command = [sys.executable, "-m", "worker.profiler", "--spec", str(job), "--output", str(found)]
        command += ["--device", device, "--processes", str(processes), "--threads", str(threads)]
        command += ["--ranks", str(len(slots)), "--repeats", str(repeats)]
        try:
            ended = subprocess.run(
                command, timeout=deadline, stdout=subprocess.DEVNULL if quiet else sys.stderr, stderr=subprocess.PIPE
            )
        except subprocess.TimeoutExpired:
            raise UsageError(
                f"profiling took longer than {deadline:g} s and was given up", "`vpipe profile` takes its time"
            ) from None
        if ended.returncode or not found.exists():
            lines = ended.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise UsageError(f"profiling failed: {lines[-1]}", "ranks need torch: pip install 'vpipe[worker]'")
        return load(found)


def save(profile: Profile, path: Path) -> None:
    """Write a profile where the user wants it: PipeDream's graph for ``.txt``, else JSON. Raises UsageError."""
    try:
        path.write_text(graph_txt.write(profile) if path.suffix == ".txt" else profile.to_json(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
