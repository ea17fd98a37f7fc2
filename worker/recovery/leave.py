"""Leaving before the end: an allocation is about to be taken away, so the run is saved and goes on in another one.

Slurm's signal becomes the file ``preempt`` in the run's folder. Rank 0 looks for it where all ranks stand at the same
step with nothing in flight, and what it says there holds for all: under bsp after every step, under asp after the steps
that have a checkpoint anyway, because draining an asynchronous pipeline at any other step would change its weights.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

from worker.errors import PeerLost
from worker.executor import Executor
from worker.recovery.saver import Saver
from worker.rendezvous import Rendezvous
from worker.spec.cluster import ClusterSpec
from worker.spec.files import RunFiles

ASKED = "VPIPE_PREEMPT"
"""Set in the environment of ranks that may be asked to leave."""
LEFT = 75
"""Exit status of a rank that has saved and left; worker.hostd.leaving has its twin."""
LOOK_EVERY = 0.5  # seconds


class Left(Exception):
    """The run is saved, and this rank leaves."""


class Leave:
    """Whether to leave, as one rank asks it; all ranks ask after the same steps."""

    def __init__(self, spec: ClusterSpec, files: RunFiles, rendezvous: Rendezvous) -> None:
        self._folder, self._name = files.folder, files.preempt.name
        self._rendezvous, self._limit = rendezvous, timedelta(seconds=spec.run.wait_limit)
        self._every = 1 if spec.pipeline.sync_mode == "bsp" else spec.checkpoint.every_steps
        self._steps = spec.run.steps
        self._looked, self._seen = 0.0, False
        self._last = ""

    @classmethod
    def from_environment(cls, spec: ClusterSpec, files: RunFiles, rendezvous: Rendezvous) -> Leave | None:
        """For a rank whose environment says that it may be asked to leave; else None."""
        return cls(spec, files, rendezvous) if os.environ.get(ASKED) else None

    def is_asked(self, step: int, executor: Executor) -> bool:
        """Whether the run ends here for now, after ``step`` steps. Raises PeerLost when rank 0 is gone."""
        if self._every is None or step % self._every or step == self._steps:
            return False
        executor.communicator.finish()  # what other ranks need to get here
        try:
            return self._tell(f"leave/{step}") if self._rendezvous.rank == 0 else self._hear(f"leave/{step}")
        except RuntimeError as error:
            raise PeerLost(f"lost rank 0 after step {step} ({str(error).splitlines()[0]})") from error

    def now(self, step: int, saver: Saver) -> None:
        """Save what is not saved yet, wait until all ranks have, and raise Left. Raises as ``Saver.close``."""
        if not saver.is_due(step):
            saver.save(step)
        saver.close()
        self._rendezvous.give("left", "")
        if self._rendezvous.rank == 0:  # which serves the store
            self._rendezvous.collect("left")
        raise Left(f"saved after step {step} and left, as Slurm asked")

    def _tell(self, key: str) -> bool:
        store = self._rendezvous.store
        store.set(key, "1" if self._look() else "0")
        if self._last:  # whoever takes part in this step has read it
            store.delete_key(self._last)
        self._last = key
        return self._seen

    def _hear(self, key: str) -> bool:
        store = self._rendezvous.store
        store.wait([key], self._limit)
        return bool(store.get(key) == b"1")

    def _look(self) -> bool:
        """Listing the folder brings what another node wrote even where shared storage remembers there was nothing."""
        if not self._seen and time.monotonic() - self._looked > LOOK_EVERY:
            self._looked = time.monotonic()
            self._seen = self._name in os.listdir(self._folder)
        return self._seen
