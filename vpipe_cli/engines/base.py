"""The seam between a launch and the place it runs in."""

from __future__ import annotations

from typing import Protocol

from vpipe_cli.launch import Launch
from vpipe_cli.runs.store import Run


class Engine(Protocol):
    """Starts runs, and says and ends what it started. It keeps nothing in memory: the run's folder is all it knows."""

    def check(self, launch: Launch) -> None:
        """Refuse what cannot run here, before anything is written.

        Raises:
            PreflightError: names the rank and what is missing.
        """

    def start(self, run: Run, launch: Launch, cluster: str) -> None:
        """Write the run's files and start it; return once it lives without this process.

        Args:
            cluster: cluster.yml as the user gave it.
        Raises:
            PreflightError: if it cannot be started here.
        """

    def alive(self, run: Run) -> bool:
        """Whether any process of the run still lives."""

    def request_stop(self, run: Run) -> None:
        """Ask for the run's end. Returns as soon as nothing can lose the wish; asking twice changes nothing."""
