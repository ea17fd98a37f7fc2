"""What to do about records that are wrong: stop at the first, or leave them out and count them."""

from __future__ import annotations

from typing import Literal

from worker.errors import DataError

SHOWN = 10
"""After so many records that were left out, only their number is told."""


class BadRecords:
    """The records that were left out so far.

    Args:
        policy: ``data.on_bad_record``.
    """

    def __init__(self, policy: Literal["stop", "skip"] = "stop") -> None:
        self._skips = policy == "skip"
        self.count = 0

    def found(self, where: str, what: str) -> None:
        """Count the record at ``where`` (file, or file:line), of which ``what`` says why it is wrong.

        Raises:
            DataError: such records are not to be left out.
        """
        if not self._skips:
            raise DataError(f"{where}: {what}", "mend it, or leave such records out with data.on_bad_record=skip")
        self.count += 1
        if self.count <= SHOWN:
            print(f"data: left out {where}: {what}", flush=True)
        elif self.count & (self.count - 1) == 0:
            print(f"data: left out {self.count} records so far", flush=True)
