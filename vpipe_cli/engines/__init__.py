"""Where a job runs."""

from __future__ import annotations

from vpipe_cli.engines.base import Engine
from vpipe_cli.engines.local import LocalEngine
from vpipe_cli.engines.slurm import SlurmEngine
from vpipe_cli.engines.ssh import SshEngine
from vpipe_cli.runs.store import Run
from worker.errors import VpipeError

SLURM = SlurmEngine()
ENGINES: dict[str, Engine] = {"local": LocalEngine(), "ssh": SshEngine(), "slurm": SLURM}
"""By the name that cluster.yml gives them."""


def bring_logs(run: Run, wait: float) -> dict[str, VpipeError]:
    """Bring what a run's ranks printed into its folder here, as far as that is done in ``wait`` seconds.

    Returns why hosts did not answer. Where ranks write into that folder themselves there is nothing to do.
    """
    engine = ENGINES.get(run.engine)
    return engine.bring_logs(run, wait) if isinstance(engine, SshEngine | SlurmEngine) else {}
