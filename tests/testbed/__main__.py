"""``python -m tests.testbed up N`` leaves N hosts up for trying things by hand; ``down NUMBER`` ends them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from tests.testbed.network import POOL, Testbed, lacks, unplug

STATE = "up.json"
CLUSTER = """\
machines: [{machines}]
ssh: {{config: {config}}}
"""


def main() -> int:
    """Do what the command line says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.testbed", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start hosts h1 ... hN and leave them up")
    up.add_argument("count", type=int, nargs="?", default=4)
    up.add_argument("--bastion", action="store_true", help="hosts i1 ... iN that only a bastion reaches")
    down = commands.add_parser("down", help="end the hosts of a testbed that `up` left")
    down.add_argument("number", type=int, nargs="?", help="which one, as `up` said; needed where several are up")
    given = parser.parse_args()
    if missing := lacks():
        print(f"a testbed needs {missing}; tests/testbed/install installs programs", file=sys.stderr)
        return 1
    return start(given.count, given.bastion) if given.command == "up" else stop(given.number)


def start(count: int, bastion: bool) -> int:
    """Start the hosts and say how to reach them."""
    testbed = Testbed(tied=False)
    hosts = testbed.behind_bastion(count)[1] if bastion else testbed.take(count)
    (testbed.folder / STATE).write_text(json.dumps(testbed.processes()))
    cluster = testbed.folder / "cluster.yml"
    machines = ", ".join(f'"{host.name}:cpu"' for host in hosts)
    cluster.write_text(CLUSTER.format(machines=machines, config=testbed.ssh_config))
    print(f"{count} hosts, {hosts[0].name} to {hosts[-1].name}; python on them: {sys.executable}")
    print(f"  ssh -F {testbed.ssh_config} {hosts[0].name}")
    print(f"  vpipe machines {cluster}")
    print(f"  python -m tests.testbed down {testbed.number}")
    return 0


def stop(number: int | None) -> int:
    """End what ``start`` left up: the testbed of that number, or the only one."""
    states = {int(state.parent.name): state for state in POOL.glob(f"*/{STATE}")}
    if number is None and len(states) > 1:
        print(f"several are up; which one: {', '.join(map(str, sorted(states)))}?", file=sys.stderr)
        return 2
    if not states or (number is not None and number not in states):
        print("no such testbed is up", file=sys.stderr)
        return 1
    number = number if number is not None else next(iter(states))
    folder = states[number].parent
    for pid in json.loads(states[number].read_text()):
        if _ours(pid, folder):
            os.kill(pid, 9)
    unplug(number)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"ended the hosts of {folder}")
    return 0


def _ours(pid: int, folder: Path) -> bool:
    """Whether a process holds the lock of the testbed in ``folder``: its number may have gone to another since."""
    lock = f"{folder}.lock"
    with suppress(OSError):
        return any(os.path.realpath(entry) == lock for entry in Path(f"/proc/{pid}/fd").iterdir())
    return False


if __name__ == "__main__":
    sys.exit(main())
