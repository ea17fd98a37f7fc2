"""The console script: the commands there are, and the one place that turns an error into a message and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vpipe_cli.commands.checkpoint import checkpoint
from vpipe_cli.commands.config import config
from vpipe_cli.commands.debug_dump import debug_dump
from vpipe_cli.commands.diff import diff
from vpipe_cli.commands.doctor import doctor
from vpipe_cli.commands.eval import eval
from vpipe_cli.commands.exec import exec
from vpipe_cli.commands.export import export
from vpipe_cli.commands.image import image
from vpipe_cli.commands.import_ import import_
from vpipe_cli.commands.init import init
from vpipe_cli.commands.launch import launch
from vpipe_cli.commands.logs import logs
from vpipe_cli.commands.machines import machines
from vpipe_cli.commands.metrics import metrics
from vpipe_cli.commands.note import note
from vpipe_cli.commands.plan import plan
from vpipe_cli.commands.profile import profile
from vpipe_cli.commands.ps import ps
from vpipe_cli.commands.report import report
from vpipe_cli.commands.resume import resume
from vpipe_cli.commands.rm import rm
from vpipe_cli.commands.simulate import simulate
from vpipe_cli.commands.ssh import ssh
from vpipe_cli.commands.stack import stack
from vpipe_cli.commands.status import status
from vpipe_cli.commands.stop import stop
from vpipe_cli.commands.sweep import sweep
from vpipe_cli.commands.top import top
from vpipe_cli.commands.trace import trace

app = typer.Typer(
    name="vpipe",
    help="Train a model too large for one GPU, as a pipeline over several.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would cost more time than all else of --help
    pretty_exceptions_enable=False,
)

COMMANDS = (
    init,
    import_,
    launch,
    resume,
    eval,
    status,
    top,
    logs,
    ps,
    diff,
    note,
    metrics,
    stop,
    rm,
    exec,
    ssh,
    stack,
    doctor,
    machines,
    profile,
    plan,
    simulate,
    trace,
    report,
    debug_dump,
)
"""Every command, in the order of --help; each module imports only typer until it is called."""

for command in COMMANDS:
    app.command()(command)
app.add_typer(image, name="image", help="Build, ship, list, verify and remove the images that ranks run in.")
app.add_typer(config, name="config", help="Show what cluster.yml may say, or what one says.")
app.add_typer(sweep, name="sweep", help="Run a job in many variants and compare them: sweep KEY=V1,V2 [KEY=...].")
app.add_typer(export, name="export", help="Write a job for another system: Kubernetes.")
app.add_typer(checkpoint, name="checkpoint", help="List, verify and export what a run saved.")


def _version(wanted: bool) -> None:
    if wanted:
        from worker import __version__

        typer.echo(f"vpipe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="show the traceback of an error; so does VPIPE_DEBUG=1")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    if debug:
        os.environ["VPIPE_DEBUG"] = "1"


def main() -> int:
    """Run the command line; the exit code."""
    try:
        app()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        code = _report(error)
    return _flush(code)


def _report(error: BaseException) -> int:
    """Say on stderr what went wrong; the exit code for it."""
    from worker.errors import VpipeError

    if isinstance(error, KeyboardInterrupt):
        return 130
    debug = os.environ.get("VPIPE_DEBUG", "0") not in ("", "0")
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, VpipeError):
        _say(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
        return error.exit_code
    # What the system refused is no mistake of vpipe's: a full disk, a file that may not be read.
    _say(f"error: {error}" if isinstance(error, OSError) else f"internal error: {type(error).__name__}: {error}")
    if not debug:
        _say("hint: VPIPE_DEBUG=1, or --debug before the command, shows the traceback")
    return 1


def _say(message: str) -> None:
    from vpipe_cli.sanitize import clean

    for line in message.split("\n"):
        print(clean(line), file=sys.stderr)


def _flush(code: int) -> int:
    """Bring out what was printed; a reader that went away, as ``head`` does, is no error."""
    if sys.stdout is None:
        return code
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return code if isinstance(error, BrokenPipeError) else _report(error)
    return code


if __name__ == "__main__":
    sys.exit(main())
