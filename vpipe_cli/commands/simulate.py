"""`vpipe simulate`: how long a schedule would take, and where it would wait."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vpipe_cli.simulation import Simulated


def simulate(
    schedule: Annotated[
        str, typer.Option(metavar="NAME|FILE.csv", help="a schedule's name, or torch's CSV text of one")
    ],
    stages: Annotated[int | None, typer.Option(metavar="N", help="ranks in a row; default: those of the file")] = None,
    minibatches: Annotated[int | None, typer.Option(metavar="N", help="of one step, or of the whole stream")] = None,
    sync_mode: Annotated[
        Literal["bsp", "asp"] | None, typer.Option(help="default: bsp where the schedule has it")
    ] = None,
    forward: Annotated[float | None, typer.Option(metavar="T", help="a stage's time for F; default 1")] = None,
    input_grad: Annotated[float | None, typer.Option(metavar="T", help="for I; default 1")] = None,
    weight_grad: Annotated[float | None, typer.Option(metavar="T", help="for W (B takes I + W); default 1")] = None,
    update: Annotated[float | None, typer.Option(metavar="T", help="for an update; default 0")] = None,
    stage_times: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON: a list with forward, input_grad, weight_grad of each stage"),
    ] = None,
    hop: Annotated[float, typer.Option(metavar="T", help="time of a tensor between two ranks")] = 0.0,
    chunks: Annotated[int | None, typer.Option(metavar="V", help="virtual stages per rank, 2 if several")] = None,
    in_flight: Annotated[int | None, typer.Option(metavar="D", help="minibatches admitted at once")] = None,
    per_update: Annotated[
        int | None, typer.Option(metavar="N", help="minibatches between updates; 2bw, accumulate")
    ] = None,
    memory_limit: Annotated[
        float | None, typer.Option(metavar="X", help="most minibatches' activations on a rank; zb-auto fills it")
    ] = None,
    weight_share: Annotated[
        float, typer.Option(metavar="X", help="share of the activations that only W sets free")
    ] = 1.0,
    output: Annotated[
        Literal["text", "json", "csv"], typer.Option("-o", "--output", help="csv: the schedule, as torch reads it")
    ] = "text",
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="draw the timeline there")] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="draw the timeline there")] = None,
) -> None:
    """Simulate a schedule: its time, its bubble, what each stage holds, and a timeline.

    Schedules: none, gpipe, 1f1b, interleaved, zb-h1, zb-h2, zb-v, zb-auto, 2bw, accumulate.
    """
    from vpipe_cli.simulation import Request, run

    simulated = run(
        Request(
            schedule=schedule,
            sync_mode=sync_mode,
            stages=stages,
            minibatches=minibatches,
            times=(forward, input_grad, weight_grad, update),
            stage_times=stage_times,
            hop=hop,
            chunks=chunks,
            in_flight=in_flight,
            per_update=per_update,
            memory_limit=memory_limit,
            weight_share=weight_share,
        )
    )
    _draw(simulated, png, svg)
    _print(simulated, output)


def _draw(simulated: Simulated, png: Path | None, svg: Path | None) -> None:
    from vpipe_cli import timeline

    title = f"{simulated.schedule}: bubble rate {simulated.simulation.bubble_rate:.4f}"
    for path, form in ((png, "png"), (svg, "svg")):
        if path is not None:
            timeline.save(simulated.simulation.spans, path, form, title)


def _print(simulated: Simulated, output: str) -> None:
    from vpipe_cli.simulation import describe, document
    from worker.schedule import to_csv

    if output == "csv":
        typer.echo(to_csv(simulated.ranks), nl=False)
    else:
        typer.echo(document(simulated) if output == "json" else describe(simulated))
