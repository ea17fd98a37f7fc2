"""Where a job runs."""

from __future__ import annotations

from vpipe_cli.engines.base import Engine
from vpipe_cli.engines.local import LocalEngine

ENGINES: dict[str, Engine] = {"local": LocalEngine()}
"""By the name that cluster.yml gives them."""
