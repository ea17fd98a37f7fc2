"""A trace file, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vpipe_cli.runs.store import Run
from vpipe_cli.tracing import chrome as chrome_trace
from vpipe_cli.tracing.read import RankTrace
from worker.errors import UsageError
from worker.spec.files import write_atomic


def chrome(run: Run, traces: Sequence[RankTrace], file: Path | None, more: Iterable[dict[str, Any]] = ()) -> Path:
    """Write the Chrome trace of ``traces``, and ``more`` events, to ``file``, or into the run's folder; returns where.

    Raises:
        UsageError: the file cannot be written.
    """
    path = (file or run.folder / "trace.json").absolute()
    try:
        write_atomic(path, json.dumps(chrome_trace.document(traces, run.id, more)))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "choose another with --file") from None
    return path
