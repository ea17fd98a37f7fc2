"""Draws the live view of a run as it stands now: `python docs/live_view.py RUN FILE.svg`, while it trains."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vpipe_cli.render import logs
from vpipe_cli.render.live import Frame, frame
from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.logs import Record, Source, sources
from vpipe_cli.runs.store import find
from vpipe_cli.runs.watch import Watcher

WIDTH, HEIGHT = 100, 22


class Picture:
    """A view that keeps the last frame."""

    newest_only = True

    def __init__(self, shown: Sequence[Source]) -> None:
        self._heads, self._records = logs.heads(shown), list[Record]()
        self.frame: Frame | None = None

    def log(self, record: Record) -> None:
        self._records.append(record)

    def show(self, now: Frame) -> None:
        self.frame = now

    def save(self, path: str) -> None:
        assert self.frame is not None
        console = Console(record=True, width=WIDTH, height=HEIGHT, file=io.StringIO(), force_terminal=True)
        console.print(frame(self.frame, self._records, self._heads, WIDTH, HEIGHT))
        picture = console.export_svg(title="vpipe launch configs/local.yml")
        # A picture that fetches nothing: fonts are the reader's own.
        picture = re.sub(r"@font-face \{.*?\}|<!--.*?-->", "", picture, flags=re.DOTALL)
        Path(path).write_text(re.sub(r"\n\s*\n", "\n", picture))


def main(name: str, path: str) -> None:
    run = find(name)
    job = placed_job(run)
    picture = Picture(sources(run.files, job))
    Watcher(run, job, picture).look()  # type: ignore[arg-type]
    picture.save(path)


if __name__ == "__main__":
    main(*sys.argv[1:3])
