"""`vpipe sweep`: one job in many variants; and what became of it."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from vpipe_cli.commands import completing

if TYPE_CHECKING:
    from vpipe_cli.sweep.begin import Asked
    from vpipe_cli.sweep.records import Definition
    from vpipe_cli.sweep.watch import Look

ASK_FROM = 200
"""Trials from which on the command asks before it begins."""
SWEEP = "Id, name, or the beginning of an id. Default: the newest sweep of this folder."
Output = Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="The form to print.")]
Named = Annotated[
    str | None, typer.Argument(autocompletion=completing.sweeps, metavar="[SWEEP]", help=SWEEP, show_default=False)
]


Values = Annotated[
    list[str] | None,
    typer.Argument(
        autocompletion=completing.settings,
        metavar="KEY=V1,V2...",
        help="A key of cluster.yml and its values: 1,2 or range(0,1,0.25).",
    ),
]
Cluster = Annotated[
    Path | None,
    typer.Option("--cluster", "-c", help="The file to vary. Default: ./cluster.yml, else the newest run's."),
]
SweepYml = Annotated[Path | None, typer.Option("--file", "-f", help="A sweep.yml with keys, values and options.")]
Zip = Annotated[bool, typer.Option("--zip", help="Take values in turn instead of every combination.")]
Condition = Annotated[str | None, typer.Option("--where", help="Only trials for which this holds: 'lr < 0.1'.")]
Repeat = Annotated[int, typer.Option("--repeat", min=1, help="Run each trial so many times, each with another seed.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Steps of each trial. Default: run.steps.")]
Warmup = Annotated[
    int | None, typer.Option("--warmup", min=0, help="First steps left out of throughput. Default: a tenth.")
]
Parallel = Annotated[int, typer.Option("--parallel", min=1, help="Trials at a time, on equal shares of machines.")]
Optimize = Annotated[
    Literal["samples_per_second", "step_seconds", "peak", "loss"] | None,
    typer.Option("--optimize", help="Let Optuna choose which trials of the grid to run, by this number."),
]
Trials = Annotated[int, typer.Option("--trials", min=1, help="With --optimize: how many trials to run.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the order in which trials run.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first trial that fails.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help=f"Do not ask before {ASK_FROM} trials or more.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Return once the sweep has started.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the trials, and touch nothing.")]


class _Group(TyperGroup):
    """``vpipe sweep lr=1,2`` means ``vpipe sweep run lr=1,2``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in where only its arguments are."""
        named = bool(args) and (args[0] in self.commands or args[0] in ("--help", "-h"))
        parsed: list[str] = super().parse_args(ctx, args if named else ["run", *args])
        return parsed


sweep = typer.Typer(cls=_Group, rich_markup_mode=None, no_args_is_help=False)


@sweep.command("run")
def run(
    values: Values = None,
    cluster: Cluster = None,
    file: SweepYml = None,
    zipped: Zip = False,
    where: Condition = None,
    repeat: Repeat = 1,
    steps: Steps = None,
    warmup: Warmup = None,
    parallel: Parallel = 1,
    optimize: Optimize = None,
    trials: Trials = 20,
    seed: Seed = 1,
    fail_fast: FailFast = False,
    yes: Yes = False,
    detach: Detach = False,
    dry_run: DryRun = False,
    output: Output = "text",
) -> None:
    """Run a job in many variants, one trial after another, and compare them. Typed again, it goes on where it was."""
    from vpipe_cli.sweep import begin, grammar, sweepfile
    from vpipe_cli.sweep.trials import Grid
    from vpipe_cli.sweep.where import Where

    given = sweepfile.read(file) if file else sweepfile.SweepFile()
    base = begin.base_of(cluster, steps or given.steps)
    axes = begin.repeated(grammar.axes([*given.texts, *(values or [])]), max(repeat, given.repeat), seed)
    condition = where or given.where
    asked = begin.Asked(
        base=base,
        grid=Grid(axes, zipped or given.zip, Where(condition) if condition else None, max(parallel, given.parallel)),
        seed=seed,
        warmup=warmup,
        fail_fast=fail_fast or given.fail_fast,
        optimize=optimize,
        budget=trials if optimize else None,
        command=" ".join(sys.argv[1:]),
    )
    _carry_out(asked, yes, detach, dry_run, output)


def _carry_out(asked: Asked, yes: bool, detach: bool, dry_run: bool, output: str) -> None:
    """Begin the sweep that was asked for, or show what it would be."""
    from vpipe_cli.sweep import begin
    from vpipe_cli.sweep import optimize as optimizer

    total = begin.size(asked.grid)
    if asked.optimize:
        optimizer.check()
    elif not dry_run and not yes:
        _ask(total, [f"{axis.name} {len(axis.values)}" for axis in asked.grid.axes])
    definition, doubles = _define(asked, total)
    if doubles:
        typer.echo(f"{doubles} of {total} trials left out: they make the same job as another one", err=True)
    if dry_run:
        _plan(definition, output)
    else:
        _start(definition, asked, detach, output)


def _define(asked: Asked, total: int) -> tuple[Definition, int]:
    from vpipe_cli.sweep import begin

    if total >= ASK_FROM:
        typer.echo(f"checking {total:,} trials", err=True)
    definition, expanded = begin.define(asked)
    return definition, expanded.doubles


def _ask(total: int, lengths: list[str]) -> None:
    """Ask before very many trials. Raises UsageError where nobody can answer."""
    from worker.errors import UsageError

    if total < ASK_FROM:
        return
    said = f"this sweep has {total:,} trials ({' x '.join(lengths)})"
    if not sys.stdin.isatty():
        raise UsageError(said, "-y runs them all without asking; --dry-run shows them")
    typer.confirm(f"{said}; run them all?", abort=True, err=True)


def _plan(definition: Definition, output: str) -> None:
    from vpipe_cli.render import sweep_table
    from vpipe_cli.render.console import console
    from vpipe_cli.sweep import export, store
    from vpipe_cli.sweep.files import SweepFiles
    from vpipe_cli.sweep.results import lines

    said = store.said(SweepFiles(store.folder_of(definition.sweep)))
    table = lines(definition, {**store.finished_elsewhere(definition), **said.rows})
    if output == "json":
        trials = [export.document(definition, line) for line in table]
        typer.echo(json.dumps({"schema": 1, "sweep": definition.sweep, "trials": trials}))
        return
    target = console()
    target.print(sweep_table.plan(definition, table, target.width))
    if not any(line.trial.prediction.step_seconds for line in table):
        typer.echo("no predictions: `vpipe profile` measures the layers that they are made from", err=True)


def _start(definition: Definition, asked: Asked, detach: bool, output: str) -> None:
    from vpipe_cli import config
    from vpipe_cli.sweep import begin, control, runner, store
    from vpipe_cli.sweep.files import SweepFiles
    from vpipe_cli.sweep.watch import follow
    from worker.errors import UsageError
    from worker.planner.choose import OutOfMemory

    files = SweepFiles(store.folder_of(definition.sweep))
    cluster = config.read(asked.base.path)
    before = store.read(files)
    if store.is_alive(files):
        if before is None or not begin.same_trials(before, definition):
            hint = f"`vpipe sweep stop {definition.sweep}` ends it; then type this again"
            raise UsageError("this sweep is running as it was typed before, and has other trials now", hint)
        typer.echo("this sweep is running already; watching it", err=True)
        definition = before
    else:
        for line in begin.news(files, definition, cluster):
            typer.echo(line, err=True)
        store.write(definition, cluster)
        if found := begin.take_over(files, definition):
            typer.echo(f"{found} trials have been run by another sweep; their results are taken from there", err=True)
        said = store.said(files)
        waiting = [trial for trial in definition.trials if not said.is_done(trial.identity)]
        if waiting:
            with suppress(OutOfMemory):  # of one trial; what no machine can run is better said here
                runner.resolved(definition, files, waiting[0])
        control.start(files)
    if detach:
        typer.echo(
            json.dumps({"schema": 1, "sweep": definition.sweep, "folder": str(files.folder)})
            if output == "json"
            else f"sweep {definition.sweep} started; watch it: vpipe sweep show -f {definition.sweep}"
        )
        return
    _end(follow(files, definition, output), output)


def _end(look: Look, output: str) -> None:
    """Print the document, and exit with the code of how it ended."""
    from vpipe_cli.sweep import export, store

    if output == "json":
        trials = [export.document(look.definition, line) for line in look.table]
        folder = str(store.folder_of(look.definition.sweep))
        sweep_is = {
            "sweep": look.definition.sweep,
            "folder": folder,
            "state": look.state,
            "why": look.gone or look.over,
        }
        typer.echo(json.dumps({"schema": 1, **sweep_is, "trials": trials}))
    failed = any(line.row.state in ("failed", "lost") for line in look.table)
    code = {"failed": 100, "left off": 100, "stopped": 103}.get(look.state, 0)
    raise typer.Exit(code or (100 if failed and look.state == "done" else 0))


@sweep.command("show")
def show(
    named: Named = None,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Watch it to its end.")] = False,
    output: Output = "text",
) -> None:
    """Show a sweep: its table, plots, and the command that runs each trial alone."""
    from vpipe_cli.sweep import store
    from vpipe_cli.sweep.files import SweepFiles
    from vpipe_cli.sweep.watch import Reader, finish, follow

    definition = store.find(named)
    files = SweepFiles(store.folder_of(definition.sweep))
    if follow_it:
        _end(follow(files, definition, output), output)
    look = Reader(files, definition).look()
    if output == "json":
        _end(look, output)
    finish(files, look, commands=True)


@sweep.command("stop")
def stop(
    named: Named = None,
    after: Annotated[bool, typer.Option("--after", help="Let the trials that run finish first.")] = False,
    output: Output = "text",
) -> None:
    """End a sweep. What has finished stays; the same command again goes on with the rest."""
    from vpipe_cli.sweep import control, store
    from vpipe_cli.sweep.files import SweepFiles

    definition = store.find(named)
    files = SweepFiles(store.folder_of(definition.sweep))
    already = not store.is_alive(files)
    if not already:
        control.request_stop(files, after)
        if not after:
            control.wait_for_end(files)
    if output == "json":
        typer.echo(
            json.dumps({"schema": 1, "sweep": definition.sweep, "folder": str(files.folder), "already": already})
        )
    elif already:
        typer.echo(f"sweep {definition.sweep} was not running")
    else:
        typer.echo(f"sweep {definition.sweep} {'ends after the trials that run' if after else 'stopped'}")


@sweep.command("export")
def export_(
    named: Named = None,
    form: Annotated[Literal["jsonl", "csv", "md"], typer.Option("--format", help="The form of the results.")] = "csv",
) -> None:
    """Print the results of a sweep as JSON lines, CSV or Markdown."""
    from vpipe_cli.sweep import export, store
    from vpipe_cli.sweep.files import SweepFiles
    from vpipe_cli.sweep.watch import Reader

    definition = store.find(named)
    look = Reader(SweepFiles(store.folder_of(definition.sweep)), definition).look()
    typer.echo(export.FORMS[form](definition, look.table), nl=False)
