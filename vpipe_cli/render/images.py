"""Images on the screen: the ones there are, one being built, one on its way to many machines."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vpipe_cli.container.ship import Step
from vpipe_cli.render import text
from vpipe_cli.render.console import can_redraw, console
from vpipe_cli.sanitize import clean

if TYPE_CHECKING:
    from rich.table import Table

SHORT = 12
"""Characters of a digest that are shown."""
BAR = 20


def listed(found: Mapping[str, list[dict[str, Any]]], sources: Mapping[str, str], now: float) -> Table:
    """The images of each host; ``sources`` says by digest what they were built from."""
    table = _table("host", "image", "size", "used", "state", "from")
    for host, images in found.items():
        for image in images:
            sha256, age = str(image["sha256"]), f"{text.age(now - float(image['used']))} ago"
            cells = [host, sha256[:SHORT], text.size(int(image["size"])), age, _state(image), sources.get(sha256, "")]
            _row(table, cells)
    return table


def _state(image: Mapping[str, Any]) -> str:
    if "ok" in image:
        return "whole" if image["ok"] else f"damaged: its sha256 is {image['found']}"
    return "in use" if image.get("in_use") else "whole" if image["whole"] else "begun"


def pruned(found: Mapping[str, dict[str, Any]]) -> Table:
    """What went and what stayed, host by host."""
    table = _table("host", "image", "size", "", "why")
    for host, answer in found.items():
        for what in ("removed", "kept"):
            for image in answer[what]:
                cells = [host, image["sha256"][:SHORT], text.size(image["size"]), what, image.get("why", "")]
                _row(table, cells)
    return table


def _table(*names: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, justify="right" if name == "size" else "left", no_wrap=name != "from")
    return table


def _row(table: Table, cells: list[str]) -> None:
    from rich.text import Text

    table.add_row(*(Text(clean(cell)) for cell in cells))


class Building:
    """Lines of a build: the newest one, drawn over and over, or all of them where that cannot be."""

    def __init__(self) -> None:
        self._console = console(sys.stderr)
        self._drawn = can_redraw(self._console)
        self._began = time.monotonic()
        self._status: Any = None

    def __enter__(self) -> Building:
        return self

    def __call__(self, line: str) -> None:
        """Show a line."""
        from rich.text import Text

        if not self._drawn:
            print(line, file=sys.stderr)
            return
        if self._status is None:
            self._status = self._console.status("", spinner="line")
            self._status.start()
        head = f"building {text.clock(time.monotonic() - self._began)}  "
        self._status.update(Text(head + line[: max(10, self._console.width - len(head) - 4)]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()


class Shipping:
    """One row per host: how much it has, how fast it comes, from where; plain lines where nothing can be drawn.

    Args:
        only_news: say nothing of hosts that have the image already.
    """

    def __init__(self, only_news: bool = False) -> None:
        self._only_news = only_news
        self._console = console(sys.stderr)
        self._live: Any = None
        self._lock = Lock()
        self._rows: dict[str, tuple[Step, float, int]] = {}  # with when its first bytes came, and how many were before

    def __enter__(self) -> Shipping:
        if can_redraw(self._console):
            from rich.live import Live

            self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=5, transient=True)
            self._live.start()
        return self

    def __call__(self, step: Step) -> None:
        """Take note of how far a host is; from any thread."""
        if self._only_news and step.what == "present":
            return
        with self._lock:
            before = self._rows.get(step.host)
            moving = before and before[0].what == step.what
            self._rows[step.host] = (step, *before[1:]) if moving and before else (step, time.monotonic(), step.done)
            if self._live is None and not moving:
                print(sentence(step), file=sys.stderr)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            for step, _, _ in self._rows.values():
                print(sentence(step), file=sys.stderr)

    def _draw(self) -> Table:
        table = _table("host", "image", "size", "", "")
        with self._lock:
            for step, began, first in self._rows.values():
                share, seconds = step.done / max(1, step.total), time.monotonic() - began
                rate = (step.done - first) / seconds if seconds > 0.5 else 0.0
                left = f"{text.size(rate)}/s, {text.clock((step.total - step.done) / rate)} left" if rate else ""
                moving = step.what in ("uploading", "fetching")
                _row(
                    table, [step.host, text.bar(share, BAR), text.size(step.done), left if moving else "", _said(step)]
                )
        return table


def sentence(step: Step) -> str:
    """``gpu2: 1.4 GiB from gpu1``."""
    return f"{clean(step.host)}: {_said(step)}"


def _said(step: Step) -> str:
    giver = "here" if step.via == "localhost" else clean(step.via)
    return {
        "present": "has the image",
        "waiting": "another launch is bringing it",
        "uploading": "getting the image from here",
        "fetching": f"getting the image from {giver}",
        "done": f"has all {text.size(step.total)}, from {giver}",
        "failed": "failed",
    }[step.what]
