"""`vpipe top`: the numbers of a run alone, drawn anew until it ends or the user leaves. It never stops a run."""

from __future__ import annotations

import time

from vpipe_cli.render import live, view
from vpipe_cli.render.console import console
from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.look import Looker
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.store import Run
from vpipe_cli.runs.watch import POLL, Interrupts
from worker.spec.records import FINAL

HINT = "Ctrl-C leaves it running"
WIDTH, HEIGHT = 100, 30
"""Of the one frame that is printed where nothing can be drawn anew."""


def top(run: Run) -> None:
    """Show how a run stands: live on a terminal that can do it, one frame elsewhere.

    Raises:
        NotFinished: the run has no ranks yet.
    """
    look = Looker(run, placed_job(run))
    screen = view.screen()
    if screen is None:
        console().print(live.whole(look.frame(standing(run)), WIDTH, HEIGHT), width=WIDTH)
        return
    with Interrupts() as interrupts, screen:
        while True:
            frame = look.frame(standing(run), hint=HINT)
            screen.show(frame)
            if frame.state in FINAL or interrupts.presses or interrupts.terminated:
                break
            time.sleep(POLL)
