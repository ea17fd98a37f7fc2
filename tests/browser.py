"""A headless Chromium that opens a file and says what became of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Page:
    """A page after its scripts have run: its elements as (name, attributes), its text, and what its console said."""

    elements: list[tuple[str, dict[str, str]]]
    text: str
    console: list[str]

    def values(self, plot: str) -> Any:
        """What the plot of that title was drawn from."""
        return next(json.loads(own["data-values"]) for _, own in self.elements if own.get("data-plot") == plot)


def opened(path: Path, folder: Path, width: int = 1200) -> Page:
    """Open ``path`` in a browser of its own. Skips the test where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is missing")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={folder}", f"--window-size={width},1200", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    reader = _Reader()
    reader.feed(done.stdout)
    console = [line for line in done.stderr.splitlines() if re.search(r":CONSOLE[:(]", line)]
    return Page(reader.elements, " ".join(reader.words), console)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] not in ("script", "style"):
            self.words.append(data)
