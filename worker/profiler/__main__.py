"""`python -m worker.profiler --spec SPEC.json --output PROFILE.json`: measures a job's layers and links here.

Starts as many processes as ranks will share this machine, so that each is measured while the others are busy too, as
in a run. Rank 0 of them writes the profile. Links between other machines are not measured here.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from worker import heap
from worker.errors import VpipeError
from worker.spec.cluster import ClusterSpec
from worker.spec.files import write_atomic
from worker.spec.profile import Profile, model_digest

TIMEOUT = timedelta(minutes=10)


def main() -> int:
    """The exit status."""
    arguments = _arguments()
    if arguments.rank is None:
        return _start(arguments)
    try:
        _measure(arguments)
    except (VpipeError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr, flush=True)
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # not through the process group's destructor, which may wait for processes that are gone


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.profiler", description="Measures layers and links.")
    parser.add_argument("--spec", type=Path, required=True, help="a job's specification as JSON")
    parser.add_argument("--output", type=Path, required=True, help="the profile")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="that measure side by side")
    parser.add_argument("--ranks", type=int, default=1, help="of the job: with more than one the link is measured too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _start(arguments: argparse.Namespace) -> int:
    """Run the processes; the first bad status of any, whose end takes the others with it."""
    world = max(arguments.processes, min(2, arguments.ranks))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": str(arguments.threads)}
    with tempfile.TemporaryDirectory(prefix="vpipe-profiler-") as folder:
        command = [sys.executable, "-m", "worker.profiler", *sys.argv[1:], "--store", str(Path(folder, "store"))]
        running = [subprocess.Popen([*command, "--rank", str(rank)], env=environment) for rank in range(world)]
        try:
            return _wait(running)
        finally:
            for process in running:
                process.kill()
                process.wait()


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    left = list(running)
    while left:
        for process in list(left):
            try:
                status = process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            if status:
                return 1
            left.remove(process)
    return 0


def _measure(arguments: argparse.Namespace) -> None:
    heap.begin()
    import torch
    import torch.distributed as dist

    from worker import data, models
    from worker.eager import spare_the_compiler
    from worker.profiler import measure, measure_link

    heap.keep_freed()
    spare_the_compiler()
    spec = ClusterSpec.model_validate_json(arguments.spec.read_bytes())
    torch.set_num_threads(arguments.threads)
    world = max(arguments.processes, min(2, arguments.ranks))
    store = dist.FileStore(str(arguments.store), world)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=arguments.rank, world_size=world, timeout=TIMEOUT)
    if arguments.rank == 0:  # one prepares the data, the others find it ready
        source = data.open_source(spec, _cache())
    dist.barrier()
    if arguments.rank:
        source = data.open_source(spec, _cache())
    model = models.build_model(spec)

    def turn(what: str) -> None:
        if arguments.processes > 1:
            dist.barrier()
        if arguments.rank == 0:
            print(f"profile: {what}, {len(model.layers)} layers, {arguments.repeats} passes", flush=True)

    heap.settle()
    if arguments.rank < arguments.processes:
        found = measure(spec, model, source, torch.device(arguments.device), arguments.repeats, turn)
    dist.barrier()
    link = measure_link(arguments.rank) if world > 1 and arguments.ranks > 1 else None
    if arguments.rank:
        return
    profile = Profile(
        model=model_digest(spec),
        device=_device_name(arguments.device),
        versions={"torch": torch.__version__, "python": platform.python_version()},
        threads=arguments.threads,
        processes=arguments.processes,
        repeats=arguments.repeats,
        layers=found.layers,
        links=[link] if link else [],
        base_bytes=found.base_bytes,
        copy_rate=found.copy_rate,
    )
    write_atomic(arguments.output, profile.to_json())


def _device_name(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {platform.processor() or 'cpu'}".strip()


def _cache() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vpipe"
    return Path(os.environ.get("VPIPE_CACHE") or default)


if __name__ == "__main__":
    sys.exit(main())
