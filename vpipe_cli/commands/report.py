"""`vpipe report`: one or several runs, or a sweep, as a single HTML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vpipe_cli.commands import completing

if TYPE_CHECKING:
    from vpipe_cli.sweep.records import Definition

NAMES = "runs, to compare several, or one sweep: ids or names; default: the newest run of this folder"


def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(autocompletion=completing.runs_and_sweeps, metavar="[RUN|SWEEP]...", help=NAMES),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="where to write; default: report.html in the first one's folder")
    ] = None,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Write what happened in a run, in several side by side, or in a sweep, as one HTML page that opens from disk."""
    from vpipe_cli.report import page
    from vpipe_cli.report.collect import collect
    from vpipe_cli.runs.store import find

    if (sweep := _sweep(names or [])) is not None:
        _of_sweep(sweep, file, output)
        return
    found = [find(name) for name in names] if names else [find(None)]
    path = (file or found[0].folder / "report.html").absolute()
    page.write(page.page([collect(run) for run in found]), path)
    _say(path, {"runs": [run.id for run in found]}, output)


def _sweep(names: list[str]) -> Definition | None:
    """The sweep that is meant; None where runs are. Of a run and a sweep of one name, the run is."""
    from vpipe_cli.runs import store as runs
    from vpipe_cli.sweep import store
    from worker.errors import RunNotFound, UsageError

    found = [sweep for sweep in store.list_sweeps() if sweep.sweep in names]
    if found and len(names) > 1:
        raise UsageError(f"{found[0].sweep} is a sweep", "a report is of runs, or of one sweep alone")
    if found or len(names) != 1:
        return found[0] if found else None
    try:
        runs.find(names[0])
    except RunNotFound:
        sweeps = [sweep for sweep in store.list_sweeps() if sweep.sweep.startswith(names[0])]
        return sweeps[0] if len(sweeps) == 1 else None
    return None


def _of_sweep(sweep: Definition, file: Path | None, output: str) -> None:
    from vpipe_cli.report import page
    from vpipe_cli.report.sweep import collect
    from vpipe_cli.sweep import store
    from vpipe_cli.sweep.files import SweepFiles
    from vpipe_cli.sweep.watch import Reader

    files = SweepFiles(store.folder_of(sweep.sweep))
    cluster = files.cluster.read_text(encoding="utf-8", errors="replace") if files.cluster.exists() else ""
    path = (file or files.folder / "report.html").absolute()
    page.write(page.sweep_page(collect(Reader(files, sweep).look(), cluster)), path)
    _say(path, {"sweep": sweep.sweep}, output)


def _say(path: Path, about: dict[str, Any], output: str) -> None:
    typer.echo(json.dumps({"schema": 1, **about, "file": str(path)}) if output == "json" else path)
