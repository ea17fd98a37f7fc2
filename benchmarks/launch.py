"""python -m benchmarks.launch: how long an image takes to its hosts, and a job to its first step, as JSON lines.

``upload``: the same file by vpipe and by scp, in turn, onto fresh hosts, connecting included. vpipe's times have the
sha256 of every byte over there and an fsync in them; ``verified`` is scp followed by sync and sha256sum. To several
hosts vpipe sends it once and they give it to each other; by hand there is one scp for each, all at once.

``start``: from the start of `vpipe launch` to the end of the first step, by the run's own events: ``check`` (Python,
cluster.yml, plan, connections, facts of all hosts), ``ship`` (image, code, files, hostds), ``ranks`` (imports, data,
their meeting, the step). ``cold``: hosts that never saw vpipe; ``warm``: once more. By hand: scp of code and image,
then torchrun on every host over ssh, of a program that only meets the others and passes one minibatch along.

Hosts are namespaces of this machine (tests/testbed), so it needs root, and all hosts share its cores and its disk:
``--megabits 1000`` gives them the cables of a laboratory, which are slower than its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tests.testbed.host import Host
from tests.testbed.network import Testbed, lacks
from vpipe_cli.container import store
from vpipe_cli.container.ship import ship
from vpipe_cli.transport.connect import connect
from worker import errors
from worker.spec.files import RunFiles, read_events
from worker.spec.ssh import SshSpec

LIMIT = 900.0
WORKER = Path(errors.__file__).parent
PORT = 29500
CLUSTER = """
name: bench
machines: {machines}
ssh: {{config: {config}, connect_timeout: 60}}
python: {python}
model: {{name: bert, hidden_size: 32, num_layers: {layers}, num_heads: 2}}
data: {{source: synthetic, sequence_length: 16, minibatch_size: 2, vocab_size: 400}}
run: {{steps: 1, threads: 1}}
"""
BY_HAND = """
import sys, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, last = dist.get_rank(), dist.get_world_size() - 1
layer = torch.nn.Linear(32, 32)
rule = torch.optim.AdamW(layer.parameters())
given = torch.ones(32, 32, requires_grad=True)
if rank:
    dist.recv(given.data, rank - 1)
output = layer(given)
if rank < last:
    dist.send(output.detach(), rank + 1)
    back = torch.empty(32, 32)
    dist.recv(back, rank + 1)
    output.backward(back)
else:
    output.sum().backward()
if rank:
    dist.send(given.grad, rank - 1)
rule.step()
dist.barrier()
if rank == last:
    print(time.time(), flush=True)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a record for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["upload", "start"])
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--megabytes", type=int, default=256, help="size of what is uploaded")
    parser.add_argument("--megabits", type=int, help="what each cable carries in a second; default: what it can")
    parser.add_argument("--image", type=Path, help="a .sif with torch, for starts in containers")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(argv)
    if missing := lacks():
        print(f"hosts to measure with need {missing}", file=sys.stderr)
        return 1
    bench = Bench(Testbed(), given.megabits)
    try:
        if given.only != "start":
            _print(upload(bench, given.hosts, given.megabytes << 20, given.repeats))
        if given.only != "upload":
            _print(start(bench, given.hosts, given.image, given.repeats))
    finally:
        bench.testbed.close()
    return 0


def _print(records: Iterator[dict[str, Any]]) -> None:
    for record in records:
        print(json.dumps(record), flush=True)


class Bench:
    """Fresh hosts whenever they are asked for, and commands of this machine for all of them at once."""

    def __init__(self, testbed: Testbed, megabits: int | None) -> None:
        self.testbed, self.megabits = testbed, megabits

    def fresh(self, count: int) -> list[Host]:
        """Hosts that hold nothing."""
        self.testbed.reset()
        hosts = self.testbed.take(count)
        if self.megabits:
            self.testbed.throttle(hosts, self.megabits)
        return hosts

    def ssh(self, program: str, *arguments: str) -> list[str]:
        """ssh or scp, as people type it."""
        return [program, "-q", "-F", str(self.testbed.ssh_config), *arguments]

    def everywhere(self, hosts: Sequence[Host], command: Callable[[Host], list[str]]) -> list[str]:
        """What a command for each host prints; all at once."""
        with ThreadPoolExecutor(len(hosts)) as pool:
            return list(pool.map(lambda host: _output(command(host)), hosts))

    def bring(self, hosts: Sequence[Host], *paths: Path) -> None:
        """Files and folders to every home, by scp."""
        self.everywhere(hosts, lambda host: self.ssh("scp", "-r", *map(str, paths), f"{host.name}:"))


def _output(command: Sequence[str], **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def upload(bench: Bench, counts: Sequence[int], size: int, repeats: int) -> Iterator[dict[str, Any]]:
    """A record for each number of hosts; the first of ``counts`` is what the others are set against."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        with path.open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        ways = {"vpipe": partial(_by_vpipe, store.digest(path)), "scp": _by_scp, "verified": _by_scp_verified}
        times: dict[tuple[int, str], list[float]] = {(count, way): [] for count in counts for way in ways}
        for _ in range(repeats):
            for count in counts:
                for way, carry in ways.items():
                    hosts = bench.fresh(count)
                    began = time.perf_counter()
                    carry(bench, hosts, path)
                    times[count, way].append(time.perf_counter() - began)
    for count in counts:
        ours = times[count, "vpipe"]
        yield {
            "case": "upload",
            "hosts": count,
            "megabytes": size >> 20,
            "megabits": bench.megabits,
            "seconds": {way: round(median(times[count, way]), 3) for way in ways},
            "ratio_to_scp": _ratio(ours, times[count, "scp"]),
            "ratio_to_verified": _ratio(ours, times[count, "verified"]),
            "ratio_to_fewest_hosts": _ratio(ours, times[counts[0], "vpipe"]),
        }


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios of the repeats: above 1, we are slower."""
    return round(median(mine / other for mine, other in zip(ours, theirs, strict=True)), 3)


def _by_vpipe(sha256: str, bench: Bench, hosts: Sequence[Host], path: Path) -> None:
    """Its digest is known, as of any image that was built or sent before."""
    ssh = SshSpec(config=str(bench.testbed.ssh_config), connect_timeout=60.0)
    with connect([host.name for host in hosts], ssh) as reached:
        ship(reached, path, sha256)


def _by_scp(bench: Bench, hosts: Sequence[Host], path: Path) -> None:
    bench.bring(hosts, path)


def _by_scp_verified(bench: Bench, hosts: Sequence[Host], path: Path) -> None:
    bench.bring(hosts, path)
    bench.everywhere(hosts, lambda host: bench.ssh("ssh", host.name, f"sync {path.name} && sha256sum {path.name}"))


def start(bench: Bench, counts: Sequence[int], image: Path | None, repeats: int) -> Iterator[dict[str, Any]]:
    """A record for each number of hosts, cold and warm."""
    for count in counts:
        found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
        hand: dict[str, list[float]] = {"cold": [], "warm": []}
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                hosts = bench.fresh(count)
                for state in found:
                    found[state].append(_launch(bench, hosts, image, Path(folder)))
                hosts = bench.fresh(count)
                for state in hand:
                    hand[state].append(_hand(bench, hosts, image, Path(folder), state == "cold"))
        for state, phases in found.items():
            totals = [sum(each.values()) for each in phases]
            yield {
                "case": "start",
                "hosts": count,
                "state": state,
                "container": image is not None,
                "phases": {name: round(median(each[name] for each in phases), 2) for name in phases[0]},
                "seconds": round(median(totals), 2),
                "by_hand": round(median(hand[state]), 2),
                "ratio_to_by_hand": _ratio(totals, hand[state]),
            }


def _launch(bench: Bench, hosts: Sequence[Host], image: Path | None, folder: Path) -> dict[str, float]:
    """Seconds of each phase of `vpipe launch`, one rank on each host."""
    text = CLUSTER.format(
        machines=json.dumps([f"{host.name}:cpu" for host in hosts]),
        config=bench.testbed.ssh_config,
        python=sys.executable,
        layers=len(hosts),
    )
    (folder / "cluster.yml").write_text(text + (f"container: {{image: {image.absolute()}}}\n" if image else ""))
    env = {**os.environ, "VPIPE_HOME": str(folder / "home")}
    began = time.time()
    said = _output([sys.executable, "-m", "vpipe_cli.app", "launch", "-o", "json"], cwd=folder, env=env)
    files = RunFiles(Path(json.loads(said)["folder"]))
    at = {event["state"]: event["time"] for event in read_events(files.events) if event["event"] == "state"}
    first = json.loads(files.metrics(len(hosts) - 1).read_text().splitlines()[0])["time"]
    planned, started = at["planning"], at["starting"]
    return {"check": planned - began, "ship": started - planned, "ranks": first - started}


def _hand(bench: Bench, hosts: Sequence[Host], image: Path | None, folder: Path, cold: bool) -> float:
    """Seconds from the first scp to the end of the first step; the code travels each time, the image once."""
    (folder / "by_hand.py").write_text(BY_HAND)
    python = f"apptainer --quiet exec --bind /root {image.name} python3" if image else sys.executable

    def run(host: Host) -> list[str]:
        words = f"{python} -m torch.distributed.run --nproc-per-node 1 --nnodes {len(hosts)}"
        words += f" --node-rank {hosts.index(host)} --master-addr {hosts[0].address} --master-port {PORT}"
        return bench.ssh("ssh", host.name, f"GLOO_SOCKET_IFNAME=eth0 OMP_NUM_THREADS=1 {words} by_hand.py 2>&1")

    began = time.time()
    bench.bring(hosts, WORKER, folder / "by_hand.py", *([image] if image and cold else []))
    said = bench.everywhere(hosts, run)
    return float(said[-1].split()[-1]) - began


if __name__ == "__main__":
    sys.exit(main())
