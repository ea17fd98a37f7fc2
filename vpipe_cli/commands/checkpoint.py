"""`vpipe checkpoint ls|verify|export`: what a run saved."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

checkpoint = typer.Typer(no_args_is_help=True)

Asked = Annotated[str | None, typer.Argument(metavar="[RUN][@STEP]", help="default: the newest run of this folder")]
Output = Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")]


@checkpoint.command("ls")
def list_(run: Annotated[str | None, typer.Argument(metavar="[RUN]")] = None, output: Output = "text") -> None:
    """List the checkpoints of a run, newest first."""
    from vpipe_cli import checkpoints
    from vpipe_cli.render import saved
    from vpipe_cli.render.console import console

    found = checkpoints.listed(checkpoints.split(run)[0])
    if output == "json":
        typer.echo(json.dumps({"schema": 1, "checkpoints": [saved.record(each) for each in found]}))
    elif found:
        console().print(saved.table(found))
    else:
        typer.echo(f"run {checkpoints.split(run)[0].id} has no checkpoint", err=True)


@checkpoint.command()
def verify(asked: Asked = None, output: Output = "text") -> None:
    """Read every file of a checkpoint, or of all of a run's, and compare it with what was written."""
    from vpipe_cli import checkpoints
    from vpipe_cli.render import saved
    from worker.errors import CheckpointError

    run, step = checkpoints.split(asked)
    chosen = [checkpoints.find(asked)] if step is not None else checkpoints.listed(run) or [checkpoints.find(asked)]
    verdicts = {each.step: checkpoints.problems(each) for each in chosen}
    if output == "json":
        records = [{**saved.record(each), "problems": verdicts[each.step]} for each in chosen]
        typer.echo(json.dumps({"schema": 1, "checkpoints": records}))
    else:
        for each in chosen:
            for line in saved.verdict(each, verdicts[each.step]):
                typer.echo(line)
    if any(verdicts.values()):
        raise typer.Exit(CheckpointError.exit_code)


@checkpoint.command()
def fetch(asked: Asked = None, output: Output = "text") -> None:
    """Bring a checkpoint from the hosts of a run to this machine, where the other commands can use it."""
    from vpipe_cli import checkpoints
    from vpipe_cli.render import saved

    found = checkpoints.fetch(asked)
    if output == "json":
        typer.echo(json.dumps({"schema": 1, **saved.record(found)}))
    else:
        typer.echo(f"{found.name} is in {found.path}")


@checkpoint.command()
def export(
    asked: Asked = None,
    to: Annotated[str | None, typer.Option("--to", metavar="FILE", help="default: RUN-STEP.safetensors here")] = None,
    output: Output = "text",
) -> None:
    """Write the weights of a checkpoint into one safetensors file, named as Hugging Face names them where it does."""
    from vpipe_cli import checkpoints
    from vpipe_cli.render.text import size
    from vpipe_cli.sanitize import clean

    found, passed = checkpoints.whole(asked)
    for line in passed:
        typer.echo(clean(line), err=True)
    path, names = checkpoints.export(found, to or f"{found.run}-{found.step}.safetensors")
    if output == "json":
        record = {"run": found.run, "step": found.step, "file": str(path), "names": names}
        typer.echo(json.dumps({"schema": 1, **record}))
    else:
        typer.echo(clean(f"{path}: the weights of {found.name}, {size(path.stat().st_size)}, under {names} names"))
