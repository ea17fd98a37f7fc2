"""`python -m worker`: one rank, as ``worker.process`` describes it."""

from __future__ import annotations

import os
import sys

from worker import heap


def main() -> int:
    """The exit status."""
    heap.begin()
    from worker import process

    return process.main()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Not sys.exit: with operations pending, the process group's destructor may wait for ranks that are gone.
    os._exit(status)
