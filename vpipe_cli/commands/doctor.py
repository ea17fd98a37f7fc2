"""`vpipe doctor`: can these machines run this job?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vpipe_cli.commands import completing

if TYPE_CHECKING:
    from vpipe_cli.transport.connect import Offer

DEFAULT = "cluster.yml"


def doctor(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            autocompletion=completing.settings, metavar="[CLUSTER.YML] [KEY=VALUE]...", help=f"Default: {DEFAULT}."
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="show the keys of hosts not known yet, and record those you say yes to")
    ] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="with --trust: record them without asking")] = False,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Check all machines of a job at once: reach, software, devices, room, clocks, and who reaches whom."""
    from vpipe_cli import config
    from vpipe_cli.doctor.visit import trust_hosts, visit
    from vpipe_cli.render import findings as drawn
    from vpipe_cli.render.console import show

    spec = config.load(*config.split(arguments or []))
    if trust:
        trust_hosts(spec, _agree(yes))
    began = time.monotonic()
    found = visit(spec)
    if output == "json":
        typer.echo(json.dumps(drawn.document(found, time.monotonic() - began)))
    else:
        show(drawn.table(found))
        typer.echo()
        typer.echo(drawn.verdict(found))
    if any(finding.verdict == "fail" for finding in found):
        raise typer.Exit(104)


def _agree(yes: bool) -> Callable[[Offer], bool]:
    """Shows a key and asks whether it is the right one. Without a terminal only ``--yes`` is an answer."""
    from worker.errors import UsageError

    def agree(offer: Offer) -> bool:
        changed = (
            " HAS CHANGED: it was installed anew, or something stands in between" if offer.state == "changed" else ""
        )
        typer.echo(f"{offer.target.known_as}{changed}\n  {offer.key.type} {offer.key.fingerprint}", err=True)
        if yes:
            return True
        if not sys.stdin.isatty():
            raise UsageError("nobody is there to say whether that is the machine's own key", "-y says yes to all")
        return typer.confirm("  trust it from now on?", err=True)

    return agree
