"""Where a job runs."""

from __future__ import annotations

from vpipe_cli.engines.base import Engine
from vpipe_cli.engines.local import LocalEngine
from vpipe_cli.engines.slurm import SlurmEngine
from vpipe_cli.engines.ssh import SshEngine

ENGINES: dict[str, Engine] = {"local": LocalEngine(), "ssh": SshEngine(), "slurm": SlurmEngine()}
"""By the name that cluster.yml gives them."""
