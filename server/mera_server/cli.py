"""`mera`: the command line. Exit code 0 done, 2 bad usage or input (one line on stderr), 1 our failure, 130 interrupted.

Torch and transformers are imported inside the commands that need them: `mera --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Annotated, Any

import typer

from mera_server.commands import bench, demo, keys, ledger, probes, recertify, report, serve, stages, tasks
from mera_server.environment import check_environment
from mera_server.settings import PREFIX, Settings
from merasteer.errors import MeraError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Serve language models that err less: MERA steering per request, calibrated or abstaining.",
    add_completion=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mera-server {metadata.version('mera-server')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_version)
    ] = False,
) -> None:
    context.obj = check_environment(os.environ, _variables(context.command))
    if context.invoked_subcommand != "serve":  # which logs them, in the form that its log has
        for line in context.obj:
            _say(line, 0)


def _variables(command: Any) -> Iterator[str]:
    """The environment variables of a command's options and of all below it."""
    yield from (PREFIX + name.upper() for name in Settings.model_fields)
    for parameter in command.params:
        found = parameter.envvar or ()
        yield from (found,) if isinstance(found, str) else found
    for child in getattr(command, "commands", {}).values():
        yield from _variables(child)


app.command()(serve.serve)
for stage in stages.COMMANDS:
    app.command()(stage)
app.command()(bench.bench)
app.command()(recertify.recertify)
app.command()(ledger.ledger)
app.command()(report.report)
app.add_typer(probes.app, name="probes")
app.add_typer(tasks.app, name="tasks")
app.add_typer(keys.app, name="keys")
app.add_typer(demo.app, name="demo")
app.command()(tasks.methods)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of one command line (default: the process's)."""
    try:
        given = bench.spread(sys.argv[1:] if arguments is None else arguments)
        code = app(args=given, standalone_mode=False, prog_name="mera")
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", 130)
    except typer.TyperException as error:
        told = error.format_message().rstrip(".")
        return _say(f"{told}{'' if told.endswith('?') else '.'} Try mera --help", 2)
    except MeraError as error:
        return _say(str(error), 2 if error.status < 500 else 1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nobody is left to tell
        return 1
    return code if isinstance(code, int) else 0


def _say(message: str, code: int) -> int:
    typer.echo(f"mera: {' '.join(message.split())}", err=True)
    return code
