"""`mera`: the command line. Exit code 0 done, 2 bad usage or input (one line on stderr), 1 our failure, 130 interrupted.

Torch and transformers are imported inside the commands that need them: `mera --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from mera_server.commands import demo, probes, serve, stages, tasks
from merasteer.errors import MeraError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Serve language models that err less: MERA steering per request, calibrated or abstaining.",
    add_completion=False,
    rich_markup_mode=None,
)
app.command()(serve.serve)
for stage in stages.COMMANDS:
    app.command()(stage)
app.add_typer(probes.app, name="probes")
app.add_typer(tasks.app, name="tasks")
app.add_typer(demo.app, name="demo")
app.command()(tasks.methods)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of one command line (default: the process's)."""
    # Threads that spin at OpenMP's barriers starve each other where another process has a core: measured on two cores beside two
    # busy processes, 7 to 12 requests a second spinning, 230 to 260 sleeping. It counts before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False, prog_name="mera")
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", 130)
    except typer.TyperException as error:
        return _say(f"{error.format_message()} Try mera --help", 2)
    except MeraError as error:
        return _say(str(error), 2 if error.status < 500 else 1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nobody is left to tell
        return 1
    return code if isinstance(code, int) else 0


def _say(message: str, code: int) -> int:
    typer.echo(f"mera: {' '.join(message.split())}", err=True)
    return code
