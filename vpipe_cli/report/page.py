"""The values of one or several runs, or of a sweep -> one HTML page."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from worker.errors import UsageError

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""The page may fetch nothing, whatever is in it."""


def page(runs: Sequence[dict[str, Any]]) -> str:
    """The page of one or several runs."""
    return _page(", ".join(run["id"] for run in runs), {"runs": runs}, "report.js")


def sweep_page(sweep: dict[str, Any]) -> str:
    """The page of a sweep as a whole."""
    return _page(sweep["id"], {"sweep": sweep}, "scatter.js", "sweep.js")


def _page(title: str, values: dict[str, Any], *scripts: str) -> str:
    """The whole page. Values travel as JSON in which nothing can end the script; scripts write them as text only."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False, default=str).replace("<", "\\u003c")
    code = "\n".join(_asset(name) for name in ("charts.js", "parts.js", *scripts))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(f'vpipe: {title}')}</title>",
            f"<style>{_asset('style.css')}</style></head>",
            '<body><main id="report"></main>',
            f'<script type="application/json" id="values">{text}</script>',
            f"<script>{code}</script></body></html>",
        ]
    )


def write(text: str, path: Path) -> None:
    """Write the page, aside and renamed. Raises UsageError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}", "choose another with --file") from None


def _asset(name: str) -> str:
    return (files("vpipe_cli.report") / name).read_text(encoding="utf-8")
