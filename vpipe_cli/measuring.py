"""A job measured on its own machines over SSH: layers on each of them at once, then every link between neighbours.

All machines are measured, each by as many processes as it has ranks; the first one's layers make the profile, and how
much slower or faster the others are becomes their speed. Machines that differ by less than measuring does count as
alike. What was written on them is removed; a machine that is not told to stop stops by itself at the deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from vpipe_cli import placing
from vpipe_cli.container.build import prepare
from vpipe_cli.container.code import ship_code
from vpipe_cli.container.ship import ship
from vpipe_cli.engines.hosts import HostFiles
from vpipe_cli.machines import Slot
from vpipe_cli.machines import hosts as names_of
from vpipe_cli.runs.store import new_id
from vpipe_cli.shipped import code, to_ship, user_code, user_folder
from vpipe_cli.transport.base import Transport
from vpipe_cli.transport.connect import connect
from worker.errors import PreflightError, UnreachableError, VpipeError
from worker.spec.cluster import ClusterSpec
from worker.spec.job import Placement
from worker.spec.profile import LinkProfile, Profile, from_json

ALIKE = 0.1
"""Machines whose layers take so much more or less together count as equally fast: it is what measuring varies by."""

LINK_LIMIT = 90.0
"""Seconds for one link, two imports of torch included."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """One machine, ready: where things lie on it, the address others reach it by, and its share of the ranks."""

    transport: Transport
    root: str
    address: str
    slots: tuple[Slot, ...]

    @property
    def host(self) -> str:
        """Its name."""
        return self.transport.host


class Measuring:
    """The measurement of one job on its machines."""

    def __init__(self, spec: ClusterSpec, slots: Sequence[Slot], threads: int, deadline: float, say: Say) -> None:
        self._spec, self._slots, self._threads, self._say = spec, slots, threads, say
        self._ends = time.monotonic() + deadline
        self._run = new_id("profile")
        self._folder = str(placing.remote_files(self._run).folder)
        self._inside = placing.INSIDE_RUN if spec.container else self._folder

    def profile(self, repeats: int) -> Profile:
        """Raises PreflightError, UnreachableError, and what shipping raises."""
        with connect(names_of(self._slots), self._spec.ssh) as hosts:
            self._shipped = to_ship(self._spec, build=True) or placing.Shipped(code().digest)
            self._ship(hosts)
            benches = {host: self._bench(transport) for host, transport in hosts.items()}
            try:
                self._say(f"profile: layers on {', '.join(hosts)}; this takes a minute or more")
                with ThreadPoolExecutor(len(benches)) as pool:
                    found = list(pool.map(lambda bench: self._layers(bench, repeats), benches.values()))
                links = self._links(benches, dict(zip(benches, found, strict=True)))
            finally:
                hosts.each(self._remove)
        return found[0].model_copy(
            update={"links": links, "speeds": self._speeds(dict(zip(hosts, found, strict=True)))}
        )

    def _ship(self, hosts: Mapping[str, Transport]) -> None:
        if self._spec.container is not None:
            image = prepare(self._spec.container.image, self._spec.container.build_args)
            ship(hosts, image.path, image.sha256)
        ship_code(hosts, code())
        if folder := user_folder(self._spec):
            ship_code(hosts, user_code(folder))

    def _bench(self, transport: Transport) -> Bench:
        """A machine with the job's folder on it."""
        with HostFiles(transport) as files:
            place = files.ask("where")
            folder = self._folder.replace(placing.ROOT, place["root"])
            wanted = {f"{folder}/spec.json": self._spec.model_dump_json(), f"{folder}/tmp/rank-0/.keep": ""}
            files.ask("write", files={**wanted, f"{place['root']}/cache/.{transport.host}": ""})
            address = place["address"] or files.ask("towards", peer="192.0.2.1")["address"]
        mine = tuple(slot for slot in self._slots if slot.host == transport.host)
        return Bench(transport, place["root"], address, mine)

    def _command(self, bench: Bench, module: str, *arguments: str, limit: float) -> list[str]:
        """As a rank of this job would be started there, but another module, and for so many seconds at most."""
        slot = bench.slots[0]
        place = Placement(rank=0, stage=0, host=slot.host, device=slot.device, threads=self._threads)
        rank = placing.remote_process(place, slot, self._spec, self._run, 1, self._shipped)
        argv = [*rank.argv[: rank.argv.index("-m")], "-m", module, *arguments]
        variables = [f"{name}={value}" for name, value in rank.env.items()]
        words = ["timeout", "-k", "5", f"{limit:.0f}", "env", *variables, *argv]
        return [word.replace(placing.ROOT, bench.root) for word in words]

    def _layers(self, bench: Bench, repeats: int) -> Profile:
        left = max(1.0, self._ends - time.monotonic())
        processes = len(bench.slots) if bench.slots[0].device == "cpu" else 1
        device = "cpu" if bench.slots[0].device == "cpu" else "cuda:0"
        options = {"spec": f"{self._inside}/spec.json", "output": f"{self._inside}/profile.json", "device": device}
        options |= {"processes": str(processes), "threads": str(self._threads), "repeats": str(repeats)}
        options["ranks"] = str(len(bench.slots))
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._ran(bench, self._command(bench, "worker.profiler", *words, limit=left), left + 15.0)
        path = f"{self._folder}/profile.json".replace(placing.ROOT, bench.root)
        return from_json(self._ran(bench, ["cat", path], 30.0), f"{bench.host}:{path}")

    def _ran(self, bench: Bench, argv: list[str], limit: float) -> bytes:
        """What a command printed. Raises PreflightError if it failed or took too long."""
        try:
            done = bench.transport.run(argv, timeout=limit)
        except TimeoutError:
            message = f"{bench.host}: profiling took longer than {limit:.0f} s"
            raise PreflightError(message, "give a longer --deadline") from None
        if done.code in (124, 137):
            raise PreflightError(
                f"{bench.host}: profiling took longer than its deadline", "give a longer --deadline"
            ) from None
        if done.code != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.code}"]
            hint = "see `vpipe doctor`: the interpreter of `python:`, or the container, needs torch"
            raise PreflightError(f"{bench.host}: profiling failed: {said[-1]}", hint)
        return done.stdout

    def _speeds(self, found: Mapping[str, Profile]) -> list[float]:
        """Of each device, relative to the first; none where all are alike."""
        totals = {host: sum(layer.seconds for layer in profile.layers) for host, profile in found.items()}
        first = totals[self._slots[0].host]
        speeds = {host: first / total if total else 1.0 for host, total in totals.items()}
        alike = {host: 1.0 if abs(speed - 1) < ALIKE else round(speed, 3) for host, speed in speeds.items()}
        return [] if set(alike.values()) == {1.0} else [alike[slot.host] for slot in self._slots]

    def _links(self, benches: Mapping[str, Bench], found: Mapping[str, Profile]) -> list[LinkProfile]:
        """Of all neighbours in rank order; each pair of machines is measured once, one after the other."""
        known: dict[tuple[str, str], LinkProfile] = {}
        links = []
        for one, other in pairwise(slot.host for slot in self._slots):
            if one == other:
                links.append(found[one].links[0])
                continue
            if (one, other) not in known:
                self._say(f"profile: the link from {one} to {other}")
                known[one, other] = self._link(benches[one], benches[other])
            links.append(known[one, other])
        return links

    def _link(self, one: Bench, other: Bench) -> LinkProfile:
        module = "worker.profiler.pair"
        channel = one.transport.open(self._command(one, module, "0", one.address, limit=LINK_LIMIT), timeout=LINK_LIMIT)
        where = f"the link from {one.host} to {other.host}"
        try:
            port = _line(channel.read, where).decode()
            with ThreadPoolExecutor(1) as pool:
                command = self._command(other, module, "1", other.address, one.address, port, limit=LINK_LIMIT)
                peer = pool.submit(self._ran, other, command, LINK_LIMIT + 15.0)
                peer.result()
            return LinkProfile.model_validate_json(_line(channel.read, where))
        except (TimeoutError, ValueError) as error:
            hint = f"can {other.host} reach {one.address} over TCP? `vpipe doctor` looks"
            raise PreflightError(f"{where} could not be measured: {error}", hint) from None
        finally:
            channel.close()

    def _remove(self, transport: Transport) -> None:
        with suppress(VpipeError, TimeoutError), HostFiles(transport) as files:
            folder = self._folder.replace(placing.ROOT, files.ask("where")["root"])
            transport.run(["rm", "-rf", "--", folder], timeout=30.0)


def _line(read: Callable[[float], bytes], where: str) -> bytes:
    text = b""
    while not text.endswith(b"\n"):
        piece = read(LINK_LIMIT)
        if not piece:
            raise UnreachableError(f"{where}: the measurement ended early", "see `vpipe doctor`")
        text += piece
    return text.strip()
