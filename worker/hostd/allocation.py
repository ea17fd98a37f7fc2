"""An allocation of Slurm as the nodes in it know it: which node is which host of the launch, and what each is told."""

from __future__ import annotations

import json
import os
import zlib
from typing import Any, Dict, Iterator

from .words import Appender, now, read_object, seal

ALLOCATION = "allocation.json"
SLICE = "slurm/{}.json"
JOIN_LIMIT = 180.0  # seconds for all nodes to join: srun may be slow, and shared storage late


class Allocation:
    """What ``begin`` has worked out. ``nodes`` maps a host of the launch to a node, ``addresses`` a node to an address.

    ``restarts`` are the attempts that may still follow one that fails by itself.
    """

    def __init__(
        self,
        job: str,
        restart: int,
        attempt: int,
        restarts: int,
        secret: str,
        nodes: Dict[str, str],
        addresses: Dict[str, str],
    ) -> None:
        self.job, self.restart, self.attempt, self.restarts = job, restart, attempt, restarts
        self.secret, self.nodes, self.addresses = secret, nodes, addresses


def read_allocation(folder: str) -> Allocation:
    """The newest allocation. Raises TypeError where none has begun."""
    return Allocation(**read_object(os.path.join(folder, ALLOCATION)))


def placed(told: Dict[str, Any], allocation: Allocation, folder: str) -> Dict[str, Any]:
    """A host's slice of the launch with the names of nodes in place of hosts, for the attempt at hand."""
    nodes = allocation.nodes
    name = nodes[told["host"]]
    gang = [{**rank, "host": nodes[rank["host"]]} for rank in told["gang"]]
    ranks = [{**rank, "host": name, "env": _devices(rank["env"])} for rank in told["ranks"]]
    return {
        **told,
        "host": name,
        "head": nodes[told["head"]],
        "gang": gang,
        "ranks": ranks,
        "claim": f"host-{name}",
        "lock": os.path.join(folder, f"alive-{name}.lock"),
        "hostd_log": os.path.join(folder, f"hostd-{name}.log"),
        "attempt": allocation.attempt,
        "attempt_folder": os.path.join(folder, f"attempt-{allocation.attempt}"),
        "restarts": allocation.restarts,
        "join_limit": JOIN_LIMIT,
        "fence": [os.path.join(folder, ALLOCATION), allocation.secret],
    }


def _devices(env: Dict[str, str]) -> Dict[str, str]:
    """A rank's GPU, by its place among those that Slurm gave this job on this node."""
    given = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    index = env.get("CUDA_VISIBLE_DEVICES", "")
    if not given or not index.isdigit() or int(index) >= len(given):
        return env
    return {**env, "CUDA_VISIBLE_DEVICES": given[int(index)]}


def events_of(folder: str) -> Iterator[Dict[str, Any]]:
    """The whole events of a run, as worker.spec.files.read_events reads them."""
    try:
        with open(os.path.join(folder, "events.jsonl"), encoding="utf-8", errors="replace") as file:
            lines = file.read().split("\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            record = json.loads(line)
            crc = record.pop("crc")
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        body = json.dumps(record, separators=(",", ":"))
        if crc == f"{zlib.crc32(body.encode()):08x}":
            yield record


def say(folder: str, state: str, attempt: int, **more: Any) -> None:
    """Write down a state that no head does."""
    record = {"time": now(), "event": "state", "state": state, "attempt": attempt, **more}
    Appender(os.path.join(folder, "events.jsonl")).write(seal(record).encode(), durable=True)
