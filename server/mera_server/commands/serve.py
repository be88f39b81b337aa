"""`mera serve`: every field of `Settings` as an option, and one server."""

from __future__ import annotations

import inspect
import ipaddress
import logging
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Annotated, Any

import typer

from mera_server.commands.options import all_options
from mera_server.logs import adopt, set_up
from mera_server.requirements import check_store
from mera_server.settings import Settings
from mera_server.start import INTERRUPTED
from merasteer.errors import InvalidInput

__all__ = ["serve"]

log = logging.getLogger("mera")
_LAST_STEP = 0.2  # seconds in which a model that is all but loaded is let go of in good order


def serve(context: typer.Context, config: Path | None = None, **given: Any) -> None:
    """Serve a model over HTTP; without --model the built-in demo."""
    settings = Settings.load(given, os.environ, config, frozenset(all_options(context.find_root().command)))
    check_store(settings)
    if settings.tensor_parallel > 1 and os.environ.get("RANK", "0") != "0":
        set_up(settings.log_level, settings.log_format, checks=settings.log_checks)
        _follow(settings)
        return
    with _listen(settings.host, settings.port) as listener:
        set_up(settings.log_level, settings.log_format, checks=settings.log_checks)
        for line in context.obj or ():
            log.warning("%s", line)
        _run(settings, listener)


def _follow(settings: Settings) -> None:
    """One of the processes behind the first: it computes its part until that one stops, and answers nobody."""
    engine = _load(settings).engine
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun tells all; the first drains, and its end ends the others
    try:
        engine.follow()
    finally:
        engine.stop()


def _signature() -> list[inspect.Parameter]:
    """`serve` as typer sees it: one option per setting. All are strings, flags or absent, `Settings` alone converts and judges."""
    declared: dict[str, Any] = {
        "context": typer.Context,
        "config": Annotated[Path | None, typer.Option("--config", help="TOML file of options (MERA_CONFIG)")],
    }
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, False, ()) else f" (default: {field.default})"
        flag, about = "--" + name.replace("_", "-"), f"{field.description}{default}"
        if field.annotation is bool:
            declared[name] = Annotated[bool | None, typer.Option(flag, help=about, show_default=False)]
        else:
            option = typer.Option(flag, help=about, metavar=name.upper(), show_default=False)
            declared[name] = Annotated[str | None, option]
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
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise InvalidInput(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); choose another"
        ) from None
    # Connections inherit it. Without it what follows an answer's first packet waits for that one to be acknowledged, 40 ms often.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _run(settings: Settings, listener: socket.socket) -> None:
    """Serves until it is stopped. Raises the error that kept the model from loading, or that ended the generation loop."""
    from mera_server.app import create_app
    from mera_server.process import Server, config_of

    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.leave()

    app = create_app(settings, loader=_load, on_failure=failed)
    server = Server(config_of(app, **_tls(settings)), app.state.runtime.flights, settings.drain_timeout)
    host, port = listener.getsockname()[:2]
    scheme, place = "http" if settings.tls_cert is None else "https", f"[{host}]" if ":" in host else host
    log.info("listening on %s://%s:%d", scheme, place, port)
    if settings.keys_file is None and not settings.open and not _is_loopback(host):
        log.critical(
            "OPEN: whoever reaches %s:%d may use this server, no key is asked for; "
            "give --keys-file or --host 127.0.0.1, or --open to say that a proxy or a network guards it",
            *(place, port),
        )
    code = 0
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        code = INTERRUPTED
    if failures:
        raise failures[0]
    if app.state.runtime.loading(_LAST_STEP):
        _abandon(code)
    if code:
        raise KeyboardInterrupt


def _abandon(code: int) -> None:
    """Ends the process without the interpreter's own end: C++ aborts where its thread is found inside a library (exit code 134)."""
    log.info("stopped while the model was loading")
    logging.shutdown()
    os._exit(code)


def _load(settings: Settings) -> Any:
    from mera_server.loading import load

    adopt("transformers", "ContinuousBatchingLogger")  # they are there once it is imported
    return load(settings)


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _tls(settings: Settings) -> dict[str, Any]:
    """uvicorn's options. Raises InvalidInput for files that are no certificate and its key."""
    if settings.tls_cert is None or settings.tls_key is None:
        return {}
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            settings.tls_cert, settings.tls_key, password=""
        )
    except (OSError, ValueError) as error:
        about = getattr(error, "strerror", None) or type(error).__name__
        raise InvalidInput(
            f"tls-cert {settings.tls_cert}, tls-key {settings.tls_key}: cannot be used ({about}); "
            "give a certificate chain and its unencrypted key, both PEM"
        ) from None
    return {"ssl_certfile": str(settings.tls_cert), "ssl_keyfile": str(settings.tls_key)}
