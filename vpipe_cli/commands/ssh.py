"""`vpipe ssh`: a shell on the machine of a rank."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from vpipe_cli.commands import completing

RUN = "id, name, or the beginning of an id; default: the newest run of this folder"


def ssh(
    run: Annotated[
        str | None, typer.Argument(autocompletion=completing.runs, metavar="[RUN]", help=RUN, show_default=False)
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=0, help="whose machine")] = 0,
) -> None:
    """Open a shell on the machine of a rank, in the run's folder there."""
    from vpipe_cli.runs.places import choose, job_of, places, ssh_of
    from vpipe_cli.runs.store import find
    from vpipe_cli.slurm.node import shell as step_shell
    from vpipe_cli.transport.shell import command
    from worker.errors import UsageError

    found = find(run)
    place = choose(places(found), rank)
    if place.here:
        shell = os.environ.get("SHELL") or "/bin/sh"
        os.chdir(place.cwd)
        os.execvpe(shell, [shell], {**os.environ, **place.env})
    on_slurm = found.engine == "slurm"
    argv = (
        step_shell(job_of(found), place.host, place.folder)
        if on_slurm
        else command(place.host, ssh_of(found), place.folder)
    )
    try:
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        hint = "type it where jobs are submitted" if on_slurm else "install OpenSSH's client"
        raise UsageError(f"there is no program `{argv[0]}` here", hint) from None
