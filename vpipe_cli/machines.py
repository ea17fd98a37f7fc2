"""``machines`` of cluster.yml -> device slots in rank order: ``cpu*2``, ``localhost:0,1``, ``gpu[01-16]:0-3``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from worker.errors import UsageError
from worker.spec.ssh import NAME

MAX_SLOTS = 1024
HERE = "localhost"
FORMS = "cpu*2, localhost:0,1, gpu1:0-3, gpu[1-4]:0,1 or gpu1:cpu*2"

_CPU = re.compile(r"cpu(?:\*([0-9]{1,9}))?")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


@dataclass(frozen=True)
class Slot:
    """A place for one rank; ``host`` is "localhost" for this machine, ``device`` is "cpu" or "cuda:N"."""

    host: str
    device: str


def slots(machines: Iterable[str]) -> list[Slot]:
    """The slots of all machines, in rank order.

    Raises:
        UsageError: a machine cannot be read or used, or a device is named twice.
    """
    found, wrong = read(machines)
    for index, message in wrong.items():
        raise UsageError(f"machines[{index}]: {message}")
    return found


def read(machines: Iterable[str]) -> tuple[list[Slot], dict[int, str]]:
    """The slots of the machines that are right, and for each wrong one, by its index, what is wrong."""
    found: list[Slot] = []
    wrong: dict[int, str] = {}
    for index, text in enumerate(machines):
        try:
            more = _machine(text)
            _check_room(found, more)
        except UsageError as error:
            wrong[index] = error.message
        else:
            found += more
    return found, wrong


def is_local(slots: Iterable[Slot]) -> bool:
    """Whether all of them are on this machine, so that no SSH is needed."""
    return all(slot.host == HERE for slot in slots)


def hosts(slots: Iterable[Slot]) -> list[str]:
    """The machines, in the order of their first rank."""
    return list(dict.fromkeys(slot.host for slot in slots))


def _machine(text: str) -> list[Slot]:
    """The slots of one entry: machine by machine, device by device."""
    if _CPU.fullmatch(text):
        return [Slot(HERE, device) for device in _devices(text, text)]
    name, _, devices = text.partition(":")
    if re.fullmatch(r"cpu([:*].*)?", text):
        raise UsageError(f"{text!r} is not a count of CPU slots; write {FORMS}")
    names = [name] if name == HERE else list(_names(text, name))
    if not devices:
        raise UsageError(f"{text!r} names no device; write {FORMS}")
    _bounded(text, len(names))
    found = _devices(text, devices)
    _bounded(text, len(names) * len(found))
    return [Slot(host, device) for host in names for device in found]


def _names(text: str, name: str) -> Iterator[str]:
    """``gpu[01-03,7]`` as gpu01, gpu02, gpu03, gpu7; several brackets count like the wheels of a meter."""
    if "@" in name:
        raise UsageError(f"{text!r}: the user to log in as belongs to the section `ssh`: {{user: ...}}")
    parts = re.split(r"\[([^\[\]]*)\]", name)
    wheels = [_numbers(text, part) if index % 2 else [part] for index, part in enumerate(parts)]
    _bounded(text, prod(map(len, wheels)))
    for found in map("".join, product(*wheels)):
        if not re.fullmatch(NAME, found) or found == "cpu":
            raise UsageError(f"{found!r} in {text!r} cannot be a machine: letters, digits, . _ - and no sign first")
        yield found


def _numbers(text: str, ranges: str) -> list[str]:
    """``01-03,7`` as its numbers, as wide as the first of each range is written."""
    found: list[str] = []
    for part in ranges.split(","):
        span = _range(text, part, "a number")
        width = len(part.strip().partition("-")[0])
        found += [f"{number:0{width}}" for number in span]
    return found


def _devices(text: str, devices: str) -> list[str]:
    if cpu := _CPU.fullmatch(devices):
        return ["cpu"] * _bounded(text, int(cpu[1] or 1))
    indices = [index for part in devices.split(",") for index in _range(text, part, "a GPU number")]
    return [f"cuda:{index}" for index in indices]


def _range(text: str, part: str, kind: str) -> range:
    match = _RANGE.fullmatch(part.strip())
    if not match:
        raise UsageError(f"{part.strip()!r} in {text!r} is not {kind} or a range of them; write {FORMS}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise UsageError(f"the range {part.strip()} in {text!r} counts down; write {match[2]}-{match[1]}")
    _bounded(text, last - first + 1 if kind == "a number" else last + 1)
    return range(first, last + 1)


def _bounded(text: str, count: int) -> int:
    if not 1 <= count <= MAX_SLOTS:
        raise UsageError(f"{text!r} asks for {count} devices; a job has 1 to {MAX_SLOTS}")
    return count


def _check_room(found: list[Slot], more: list[Slot]) -> None:
    """A GPU takes one rank; CPU slots repeat, up to the limit of all."""
    seen = set(found)
    for slot in more:
        if slot.device != "cpu" and slot in seen:
            raise UsageError(f"{slot.host} {slot.device} is named twice; a device takes one rank")
        seen.add(slot)
    _bounded("machines", len(found) + len(more))
