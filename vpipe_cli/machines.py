"""``machines`` of cluster.yml -> device slots in rank order: ``cpu*2``, ``localhost:0,1``, ``localhost:0-3``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from worker.errors import UsageError

MAX_SLOTS = 1024
FORMS = "cpu, cpu*2, localhost:0,1 or localhost:0-3"

_CPU = re.compile(r"cpu(?:\*([0-9]{1,9}))?")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


@dataclass(frozen=True)
class Slot:
    """A place for one rank; ``device`` is "cpu" or "cuda:N"."""

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


def _machine(text: str) -> list[Slot]:
    if cpu := _CPU.fullmatch(text):
        return [Slot("localhost", "cpu")] * _bounded(text, int(cpu[1] or 1))
    host, _, devices = text.partition(":")
    if host == "localhost" and devices:
        return [Slot("localhost", f"cuda:{index}") for part in devices.split(",") for index in _indices(text, part)]
    if host == "localhost":
        raise UsageError(f"{text!r} names no device; write {FORMS}")
    if host.startswith("cpu"):
        raise UsageError(f"{text!r} is not a count of CPU slots; write {FORMS}")
    raise UsageError(f"{text!r} is not this machine, and engine local runs here only; write {FORMS}")


def _indices(text: str, part: str) -> range:
    match = _RANGE.fullmatch(part.strip())
    if not match:
        raise UsageError(f"{part.strip()!r} in {text!r} is not a GPU number or a range of them; write {FORMS}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise UsageError(f"the range {part.strip()} in {text!r} counts down; write {last}-{first}")
    _bounded(text, last + 1)
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
