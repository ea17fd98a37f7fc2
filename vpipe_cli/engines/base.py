"""The seam between a launch and the place it runs in."""

from __future__ import annotations

from typing import Protocol

from vpipe_cli.container.ship import Progress
from vpipe_cli.launch import Launch
from vpipe_cli.runs.store import Run


class Engine(Protocol):
    """Starts runs, and says and ends what it started. It keeps nothing in memory: the run's folder is all it knows."""

    def check(self, launch: Launch) -> None:
        """Refuse what cannot run here, before anything is written.

        Raises:
            PreflightError: names the rank and what is missing.
        """

    def start(self, run: Run, launch: Launch, cluster: str, progress: Progress | None = None) -> None:
        """Write the run's files and start it; return once it lives without this process.

        Args:
            cluster: cluster.yml as the user gave it.
            progress: told how far each host has the image, where one is sent.
        Raises:
            PreflightError: if it cannot be started here.
        """

    def refresh(self, run: Run, wait: float | None = None) -> None:
        """Bring what is new of the run into its folder on this machine, as far as its hosts answer. Never raises.

        Args:
            wait: seconds after which it goes on behind the caller's back; default: long at first, then a moment.
        """

    def alive(self, run: Run) -> bool | None:
        """Whether any process of the run still lives; None where the machine that knows does not answer."""

    def request_stop(self, run: Run) -> None:
        """Ask for the run's end. Returns as soon as nothing can lose the wish; asking twice changes nothing."""
