"""`mera serve`: every field of `Settings` as an option, and one uvicorn server."""

from __future__ import annotations

import inspect
import logging
import os
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from mera_server.commands.options import all_options
from mera_server.settings import Settings
from merasteer.errors import InvalidInput

__all__ = ["serve"]


def serve(context: typer.Context, config: Path | None = None, **given: str | None) -> None:
    """Serve a model over HTTP; without --model the built-in demo."""
    settings = Settings.load(given, os.environ, config, frozenset(all_options(context.find_root().command)))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for name in ("mera", "merasteer", "uvicorn"):
        logging.getLogger(name).setLevel(settings.log_level.upper())
    with _listen(settings.host, settings.port) as listener:
        _run(settings, listener)


def _signature() -> list[inspect.Parameter]:
    """`serve` as typer sees it: one option per setting. All are strings or absent, `Settings` alone converts and judges."""
    declared: dict[str, Any] = {
        "context": typer.Context,
        "config": Annotated[Path | None, typer.Option("--config", help="TOML file of options (MERA_CONFIG)")],
    }
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f" (default: {field.default})"
        flag = "--" + name.replace("_", "-")
        about = typer.Option(flag, help=f"{field.description}{default}", metavar=name.upper(), show_default=False)
        declared[name] = Annotated[str | None, about]
    keyword = inspect.Parameter.KEYWORD_ONLY
    none: dict[str, Any] = {"context": inspect.Parameter.empty}
    return [
        inspect.Parameter(name, keyword, default=none.get(name), annotation=kind) for name, kind in declared.items()
    ]


serve.__signature__ = inspect.Signature(_signature())  # type: ignore[attr-defined]
serve.__annotations__ = {parameter.name: parameter.annotation for parameter in _signature()}


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, before the model is loaded: a port that is taken is told at once."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise InvalidInput(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); choose another"
        ) from None


def _run(settings: Settings, listener: socket.socket) -> None:
    """Serves until it is stopped. Raises the error that kept the model from loading."""
    import uvicorn

    from mera_server.app import create_app

    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, on_failure=failed)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", server_header=False))
    host, port = listener.getsockname()[:2]
    logging.getLogger("mera").info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    server.run(sockets=[listener])
    if failures:
        raise failures[0]
