"""Saves a run while it trains: a snapshot at once, the writing behind its back, one commit for all ranks.

Every rank writes and fsyncs its own files into ``step-N.tmp-K`` and reports their hashes. Rank 0 makes one manifest of
all reports; the keeper of each place writes it, fsyncs the folder, and renames it. A rank that dies anywhere leaves a
folder that is no checkpoint. What goes wrong is raised at the rank's next step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from worker import progress
from worker.checkpoint import layout
from worker.errors import CheckpointError, VpipeError
from worker.recovery import tensors
from worker.recovery.commit import Commit, Report
from worker.recovery.place import Place
from worker.recovery.snapshot import Camera, Snapshot
from worker.spec.checkpoint import CheckpointSpec


class Saver:
    """The checkpoints of one rank.

    Args:
        steps: of the whole run; its last one is saved too.
        say: told about every commit, on rank 0.
    """

    def __init__(
        self,
        spec: CheckpointSpec,
        steps: int,
        attempt: int,
        place: Place,
        camera: Camera,
        commit: Commit,
        say: Callable[[str], None],
    ) -> None:
        self._spec, self._steps, self._attempt = spec, steps, attempt
        self._place, self._camera, self._commit, self._say = place, camera, commit, say
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` steps.

        Raises:
            CheckpointError: the one before failed here. PeerLost: it failed on another rank.
        """
        self._raise()
        assert self._spec.every_steps is not None
        return step % self._spec.every_steps == 0 or step == self._steps

    def save(self, step: int) -> None:
        """Begin to save the rank as it stands after ``step`` steps, with nothing in flight. One at a time: waits until
        the one before is written. Raises as ``close``."""
        self.close()
        snapshot = self._camera.take()
        self._thread = threading.Thread(target=self._run, args=(step, snapshot), daemon=True, name="checkpoint")
        self._thread.start()

    def close(self) -> None:
        """Wait until what was begun is committed, or this rank's part of it.

        Raises:
            CheckpointError: it failed here, or took too long. PeerLost: it failed on another rank.
        """
        if self._thread is not None:
            progress.at(progress.step(), "a checkpoint", 2 * self._spec.timeout)
            self._thread.join(2 * self._spec.timeout)
            if self._thread.is_alive():
                raise CheckpointError(f"no checkpoint could be written within {2 * self._spec.timeout:g} s", _SLOW)
        self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, step: int, snapshot: Snapshot) -> None:
        try:
            self._save(step, snapshot)
        except OSError as error:
            self._error = _explained(step, self._place.rank, self._place.folder, error)
        except BaseException as error:
            self._error = error

    def _save(self, step: int, snapshot: Snapshot) -> None:
        started = time.monotonic()
        folder = layout.temporary(self._place.folder, step, self._attempt)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            files = {name: tensors.write(folder / name, t, self._place.rank) for name, t in snapshot.files.items()}
            layout.fsync_folder(folder)
        except (OSError, CheckpointError) as error:  # it cannot be written, or does not read as it was written
            problem = _explained(step, self._place.rank, self._place.folder, error)
            with suppress(VpipeError):
                self._commit.report(step, Report.failed(problem.message))
            raise problem from None
        self._commit.report(step, Report.of(snapshot, files))
        if self._place.keeps:
            size = self._commit.finish(step, folder)
            layout.prune(self._place.folder, self._spec.keep)
            if self._place.rank == 0:
                self._say(f"checkpoint step-{step}: {size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s")


_SLOW = "raise checkpoint.every_steps or checkpoint.timeout, or put VPIPE_HOME on a faster disk"


def _explained(step: int, rank: int, folder: Path, error: Exception) -> CheckpointError:
    hint = "make room there, lower checkpoint.keep, or set VPIPE_HOME to another disk; then `vpipe resume`"
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(f"rank {rank} cannot write checkpoint step-{step} below {folder}: {reason}", hint)
