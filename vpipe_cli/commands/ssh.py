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
    from vpipe_cli.runs.places import choose, hosts_of, job_of, places, ssh_of
    from vpipe_cli.runs.store import find
    from vpipe_cli.slurm.node import shell as step_shell
    from vpipe_cli.transport.shell import command, enter
    from worker.errors import UsageError

    found = find(run)
    place = choose(places(found), rank)
    if place.here:
        shell = os.environ.get("SHELL") or "/bin/sh"
        os.chdir(place.cwd)
        os.execvpe(shell, [shell], {**os.environ, **place.env})
    machine, argv = place.host, enter(place.folder)
    if found.engine == "slurm":
        machine, argv = next(iter(hosts_of(found)), ""), step_shell(job_of(found), place.host, place.folder)
    if machine:
        argv = command(machine, ssh_of(found), argv)
    try:
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        hint = "type it where jobs are submitted" if not machine else "install OpenSSH's client"
        raise UsageError(f"there is no program `{argv[0]}` here", hint) from None
