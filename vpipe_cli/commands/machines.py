"""`vpipe machines`: which rank goes where, and how each machine is reached."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer


def machines(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CLUSTER.yml] [KEY=VALUE]...", help="the file (default: ./cluster.yml), and values to set"
        ),
    ] = None,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Show the machines and devices of a cluster.yml in rank order, and the way to each. Connects to nothing."""
    from vpipe_cli import machines
    from vpipe_cli.config import load, split
    from vpipe_cli.render import machines as table
    from vpipe_cli.render.console import show
    from vpipe_cli.transport.target import Target, resolve

    spec = load(*split(given or []))
    slots = machines.slots(spec.machines)
    ways = {host: None if host == machines.HERE else resolve(host, spec.ssh) for host in machines.hosts(slots)}
    if output == "text":
        show(table.machines(slots, ways))
        return

    def way(target: Target | None) -> dict[str, Any] | None:
        if target is None:
            return None
        route = {"address": target.address, "port": target.port, "user": target.user, "keys": list(target.keys)}
        return {**route, "via": {"host": target.via.host, **(way(target.via) or {})} if target.via else None}

    ranks = [{"rank": rank, "host": slot.host, "device": slot.device} for rank, slot in enumerate(slots)]
    hosts = [{"host": host, "ssh": way(target)} for host, target in ways.items()]
    typer.echo(json.dumps({"schema": 1, "engine": spec.engine, "machines": hosts, "ranks": ranks}))
