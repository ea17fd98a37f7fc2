"""The section ``slurm`` of cluster.yml: what the job asks Slurm for.

Every value becomes an option of sbatch in a script that is executed, so none can hold what would end its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from worker.spec.section import Count, Misfit, Section
from worker.spec.ssh import Name

WORD = r"[A-Za-z0-9_][A-Za-z0-9_.,:+@-]{0,254}"
TIME = r"\d{1,6}|\d{1,6}:\d{2}(?::\d{2})?|\d{1,4}-\d{1,2}(?::\d{2}(?::\d{2})?)?"
"""Minutes, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS[:MINUTES[:SECONDS]]."""
CONSTRAINT = r"[A-Za-z0-9_][A-Za-z0-9_.,:+@&|*()\[\]-]{0,254}"
OPTION = re.compile(r"--([a-z][a-z0-9-]*)(?:=(.*))?")
OWN = {
    "array": "`vpipe sweep` runs many",
    "batch": "vpipe places the script on the first node",
    "chdir": "vpipe names every path whole",
    "cpus-per-gpu": "`slurm.cpus_per_rank` says it",
    "error": "all goes to slurm.log in the run's folder",
    "export": "ranks get the environment that cluster.yml gives them",
    "export-file": "ranks get the environment that cluster.yml gives them",
    "input": "hostd reads nothing",
    "job-name": "`name` says it",
    "kill-on-bad-exit": "hostd ends the ranks together",
    "no-requeue": "`slurm.max_requeues` says it",
    "ntasks": "one hostd runs on each node",
    "ntasks-per-node": "one hostd runs on each node",
    "open-mode": "slurm.log goes on behind a requeue",
    "output": "all goes to slurm.log in the run's folder",
    "parsable": "vpipe reads what sbatch prints",
    "requeue": "`slurm.max_requeues` says it",
    "signal": "`slurm.save_before` says it",
    "test-only": "`vpipe launch --dry-run` shows what would run",
    "wait": "`vpipe launch` itself waits",
    "wrap": "vpipe writes the script",
}
"""Options that vpipe sets itself or that would change what it relies on, and what to use instead."""
KEYS = {
    "account": "account", "constraint": "constraint", "cpus-per-task": "cpus_per_rank", "gpus": "gpus_per_node",
    "gpus-per-node": "gpus_per_node", "gres": "gpus_per_node", "nodelist": "machines", "nodes": "nodes",
    "partition": "partition", "qos": "qos", "time": "time",
}  # fmt: skip
"""Options that have a key of their own."""


class SlurmSpec(Section):
    """What the job asks Slurm for; for ``engine: slurm`` only."""

    login: Name | None = Field(
        None,
        description="the machine where jobs are submitted, reached as `ssh` says; default: this one, a login node",
    )
    partition: Annotated[str, Field(pattern=f"^{WORD}$")] | None = Field(
        None, description="partition, or several with commas; default: Slurm's"
    )
    account: Annotated[str, Field(pattern=f"^{WORD}$")] | None = Field(
        None, description="account that pays; default: Slurm's"
    )
    qos: Annotated[str, Field(pattern=f"^{WORD}$")] | None = Field(
        None, description="quality of service; default: Slurm's"
    )
    time: Annotated[str, Field(pattern=f"^(?:{TIME})$")] | Count | None = Field(
        None,
        description="time limit: minutes, or a text like '2:00:00' or '1-12'; a longer job goes on in the next one",
    )
    nodes: Count | None = Field(
        None, description="nodes, which Slurm chooses; default: those that machines names; given, machines is not used"
    )
    gpus_per_node: Count | None = Field(
        None, description="GPUs of each node, one rank on each; default: none, the ranks run on CPUs"
    )
    ranks_per_node: Count = Field(1, description="CPU ranks on each node, where gpus_per_node is not given")
    cpus_per_rank: Count = Field(1, description="CPU cores, and threads, of each rank")
    constraint: Annotated[str, Field(pattern=f"^{CONSTRAINT}$")] | None = Field(
        None, description="features that the nodes must have, as sbatch writes them: a100&ib"
    )
    extra: list[str] = Field([], description='further options of sbatch, each as "--option=value"')
    image: Literal["shared", "cache", "sbcast"] = Field(
        "shared",
        description="how nodes get the image of container: shared, read in $VPIPE_HOME; cache, copied to node_folder "
        "once; sbcast, sent there by Slurm",
    )
    node_folder: Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./+-]*$")] = Field(
        "/tmp", description="folder of each node for that image"
    )
    save_before: Annotated[int, Field(ge=10, le=65535)] = Field(
        180, description="seconds before the time limit at which the run is saved and queued again"
    )
    max_requeues: Annotated[int, Field(ge=0, le=10000)] = Field(
        100, description="times the job is queued again after a time limit, a preemption or a lost node"
    )

    def misfits(self) -> Iterator[Misfit]:
        """A login node elsewhere; options that can stand in a script, and are nobody else's."""
        if self.login == "localhost":
            yield Misfit("is localhost; leave it out where jobs are submitted on this machine", ("login",))
        for option in self.extra:
            if problem := option_problem(option):
                yield Misfit(problem, ("extra",))

    @property
    def slots_per_node(self) -> int:
        """Ranks on each node that Slurm chooses."""
        return self.gpus_per_node or self.ranks_per_node

    @property
    def machines(self) -> list[str]:
        """The nodes that Slurm will choose, as ``machines`` would name them; none if it is not to choose."""
        if self.nodes is None:
            return []
        names = f"node[1-{self.nodes}]" if self.nodes > 1 else "node1"
        devices = f"0-{self.gpus_per_node - 1}" if self.gpus_per_node else f"cpu*{self.ranks_per_node}"
        return [f"{names}:{devices}"]


def option_problem(option: str) -> str:
    """Why an option cannot be given to sbatch, in words that follow ``extra``; empty if it can."""
    if not option.isprintable():
        return f"has {option!r}, which holds a line break or another control character"
    match = OPTION.fullmatch(option)
    if match is None:
        return f"has {option!r}, which is not of the form --option or --option=value"
    name = match[1]
    if name in KEYS:
        return f"has --{name}; `{KEYS[name] if name == 'nodelist' else 'slurm.' + KEYS[name]}` says that"
    if why := OWN.get(name):
        return f"has --{name}, which vpipe sets itself: {why}"
    return ""
