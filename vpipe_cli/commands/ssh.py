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
    from vpipe_cli.runs.places import choose, places, ssh_of
    from vpipe_cli.runs.store import find
    from vpipe_cli.transport.shell import command
    from worker.errors import UsageError

    found = find(run)
    place = choose(places(found), rank)
    if place.here:
        shell = os.environ.get("SHELL") or "/bin/sh"
        os.chdir(place.cwd)
        os.execvpe(shell, [shell], {**os.environ, **place.env})
    argv = command(place.host, ssh_of(found), place.folder)
    try:
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        raise UsageError("there is no program `ssh` here", "install OpenSSH's client") from None
