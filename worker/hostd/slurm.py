"""What the script of a run on Slurm calls: ``python3 -I -S .../worker/hostd slurm begin|node|end RUN_FOLDER``.

begin  once, on the first node, as each allocation begins: which node is which machine of the launch, which attempt
node   on every node, by srun: its hostd, in the foreground; the head on the node of rank 0
end    once, when srun has ended: how it stands, and whether the job is to be queued again

The folder of the run is on storage that all nodes share. ``allocation.json`` there says which allocation is the newest;
whoever belongs to an older one writes nothing more.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional, Sequence

from .allocation import ALLOCATION, SLICE, Allocation, events_of, placed, read_allocation, say
from .leaving import AllocationHead, call_head, tell_address
from .member import Member
from .processes import adopt_orphans, fork_with_guard
from .start import claim, take_lock
from .words import Refused, note, read_object, write_atomic

FINAL = ("succeeded", "failed", "stopped", "lost")
LOCK_LIMIT = 40.0  # seconds for what an older allocation left on this node to end
SLURM_LIMIT = 60.0  # seconds for Slurm to answer


def main(argv: Sequence[str]) -> int:
    """Do one step; its exit status."""
    os.umask(0o077)
    step, folder = argv[2:4] if len(argv) == 4 else ("", "")
    if step not in STEPS:
        print("usage: python3 hostd slurm begin|node|end RUN_FOLDER", file=sys.stderr)
        return 2
    try:
        return int(STEPS[step](folder))
    except (OSError, Refused, LookupError, ValueError, subprocess.SubprocessError) as error:
        print(f"vpipe {step}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1


def begin(folder: str) -> int:
    """Work out the allocation and write it down; 1 where there is nothing to begin."""
    told, last = read_object(os.path.join(folder, "slurm.json")), _last_state(folder)
    if last.get("state") in FINAL:
        return 1
    if os.path.exists(os.path.join(folder, "stop")):
        say(folder, "stopped", last.get("attempt", 1), why="a stop was asked for before the run began")
        return 1
    names = _hostnames()
    if len(names) < len(told["hosts"]):
        raise Refused(f"the launch needs {len(told['hosts'])} nodes, the allocation has {len(names)}")
    if told["named"] and set(told["hosts"]) - set(names):
        raise Refused(f"the launch names {', '.join(told['hosts'])}, the allocation has {', '.join(names)}")
    nodes = {host: host if told["named"] else names[index] for index, host in enumerate(told["hosts"])}
    allocation = Allocation(
        job=os.environ["SLURM_JOB_ID"],
        restart=_restarts_of_job(),
        attempt=_next_attempt(folder),
        restarts=max(0, told["restarts"] - _failures(folder)),
        secret=secrets.token_hex(32),
        nodes=nodes,
        addresses={node: _address(node) for node in nodes.values()},
    )
    _place(folder, nodes)
    if os.path.exists(os.path.join(folder, "preempt")):
        os.unlink(os.path.join(folder, "preempt"))
    write_atomic(os.path.join(folder, ALLOCATION), json.dumps(allocation.__dict__, indent=1) + "\n")
    return 0


def node(folder: str) -> int:
    """Be this node's hostd until the run, or the allocation, is over."""
    name = os.environ["SLURMD_NODENAME"]
    allocation = read_allocation(folder)
    host = next((host for host, node in allocation.nodes.items() if node == name), "")
    if not host:  # more nodes than the launch needs
        return 0
    launch = placed(read_object(os.path.join(folder, SLICE.format(host))), allocation, folder)
    lock = _lock(launch["lock"])
    claim(launch, launch["attempt"])
    _settle_image(launch)
    _write_to(launch["hostd_log"])
    if launch["head"] == name:
        return _lead(launch, lock, allocation, folder)
    member = Member(launch, lock, allocation.secret, call_head(folder, allocation), claim)
    fork_with_guard(launch["run"], name)
    adopt_orphans()
    member.join()
    member.run(lambda _: None)
    return 0


def _lead(launch: Dict[str, Any], lock: int, allocation: Allocation, folder: str) -> int:
    peers = {name: address for name, address in allocation.addresses.items() if name != launch["host"]}
    fork_with_guard(launch["run"], launch["host"])
    adopt_orphans()
    head = AllocationHead(launch, lock, allocation.secret, peers, claim)
    head.run(lambda address: tell_address(folder, allocation, address))
    return 0


def end(folder: str) -> int:
    """Queue the job again where that is what it needs, or write down how the run ended; 0 if it succeeded."""
    last = _last_state(folder)
    state, attempt = last.get("state", ""), last.get("attempt", 1)
    if state in FINAL:
        return 0 if state == "succeeded" else 1
    allocation = _known(folder)
    if allocation and (allocation.job, allocation.restart) != (os.environ["SLURM_JOB_ID"], _restarts_of_job()):
        return 0  # another allocation has the run
    if os.path.exists(os.path.join(folder, "stop")):
        say(folder, "stopped", attempt, why="a stop was asked for")
        return 1
    preempted = os.path.exists(os.path.join(folder, "preempt"))
    began = allocation is not None and attempt == allocation.attempt and state in ("running", "restarting")
    if preempted or (began and (last.get("requeue") or state == "running")):
        why = last.get("why") or ("Slurm ends the allocation" if preempted else "its hostd ended without a word")
        return _requeue(folder, attempt, why, preempted)
    if last.get("interrupted"):  # Slurm itself ends the job or queues it again, and the client sees which
        return 1
    return _failed(folder, attempt, "the job ended in Slurm before the run began; slurm.log there says why")


def _requeue(folder: str, attempt: int, why: str, preempted: bool) -> int:
    """Queue the job again, or say why that cannot be."""
    told, used = read_object(os.path.join(folder, "slurm.json")), _restarts_of_job()
    if preempted and not told["saves"]:
        return _failed(folder, attempt, "the allocation ended before the run, and checkpoint.every_steps is null")
    if used >= told["max_requeues"]:
        return _failed(folder, attempt, f"{why}; it was queued {used} times again, all that slurm.max_requeues allows")
    say(folder, "pending", attempt, why=why)
    done = _slurm("scontrol", "requeue", _job())
    if done.returncode:
        return _failed(folder, attempt, f"the job could not be queued again: {done.stderr.strip()}")
    return 0


def _known(folder: str) -> Optional[Allocation]:
    """The newest allocation; None where none has begun."""
    try:
        return read_allocation(folder)
    except (OSError, TypeError):
        return None


def _restarts_of_job() -> int:
    """How often Slurm has queued this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _job() -> str:
    """This job, as scontrol is to be told of it: one of the tasks of an array has the number of the whole array too."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


STEPS = {"begin": begin, "node": node, "end": end}


def _failed(folder: str, attempt: int, cause: str) -> int:
    gang = read_object(os.path.join(folder, "launch.json")).get("ranks") or [{"rank": 0, "stage": 0, "host": "?"}]
    first = {key: gang[0][key] for key in ("rank", "stage", "host")}
    say(folder, "failed", attempt, first_failure={**first, "cause": cause, "step": None})
    return 1


def _place(folder: str, nodes: Dict[str, str]) -> None:
    """Write the names of the nodes into job.json, which the ranks read, and launch.json, which people are shown."""
    for name in ("job", "launch"):
        told = read_object(os.path.join(folder, "slurm", f"{name}.json"))
        for rank in told["ranks"]:
            rank["host"] = nodes[rank["host"]]
        if name == "launch":
            told["head"] = nodes[told["head"]]
            for place in told["job"]["ranks"]:
                place["host"] = nodes[place["host"]]
        write_atomic(os.path.join(folder, f"{name}.json"), json.dumps(told, indent=2) + "\n")


def _hostnames() -> List[str]:
    """The nodes of the allocation, in Slurm's order."""
    return _slurm("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"], check=True).stdout.split()


def _address(node: str) -> str:
    """Where Slurm itself reaches a node; its name where Slurm does not say."""
    said = _slurm("scontrol", "--oneliner", "show", "node", node)
    match = re.search(r"\bNodeAddr=(\S+)", said.stdout)
    return match[1] if match and match[1] != "(null)" else node


def _slurm(*command: str, check: bool = False) -> "subprocess.CompletedProcess[str]":
    pipe = subprocess.PIPE
    return subprocess.run(command, stdout=pipe, stderr=pipe, universal_newlines=True, timeout=SLURM_LIMIT, check=check)


def _next_attempt(folder: str) -> int:
    """One more than any attempt of any allocation."""
    found = [re.fullmatch(r"attempt-(\d+)", name) for name in os.listdir(folder)]
    return 1 + max([int(match[1]) for match in found if match] or [0])


def _failures(folder: str) -> int:
    """Attempts that failed by themselves and were started again."""
    return sum("failed_attempt" in event for event in events_of(folder))


def _last_state(folder: str) -> Dict[str, Any]:
    states = [event for event in events_of(folder) if event.get("event") == "state"]
    return next((event for event in states if event["state"] in FINAL), states[-1] if states else {})


def _lock(path: str) -> int:
    """Lock this node for the run, as soon as nothing of an older allocation is left on it. Raises Refused."""
    deadline = time.monotonic() + LOCK_LIMIT
    while True:
        try:
            return take_lock(path)
        except Refused:
            if time.monotonic() > deadline:
                raise


def _settle_image(launch: Dict[str, Any]) -> None:
    """Put the image where the ranks of this node look for it: what sbcast brought, else a copy of the shared one."""
    image = launch.get("node_image")
    if image:
        from .image import settle

        settle(image["source"], image["target"], image["sha256"])


def _write_to(log: str) -> None:
    """From now on all output goes to hostd's own log."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target in (1, 2):
        os.dup2(output, target)
    os.close(output)
    note(f"begins on {os.environ['SLURMD_NODENAME']} in job {os.environ['SLURM_JOB_ID']}")
