"""`create_app`: the one place where routes, handlers and the runtime meet. It serves alone, in tests, and per replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from mera_server import tracing
from mera_server.access import Access, needed
from mera_server.errors import on_http_exception, on_mera_error
from mera_server.examples import add_examples
from mera_server.guard import Guard
from mera_server.middleware import BodyLimit, Head, Requests
from mera_server.routes import classify, generate, openai, ops, page, store, tokens
from mera_server.running import Running
from mera_server.runtime import Loader, Runtime
from mera_server.settings import Settings
from mera_server.told import is_openai
from mera_server.tracing import Traced
from merasteer.errors import MeraError

__all__ = ["create_app"]

_CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": [
        "*"
    ],  # an origin that may ask may say what it likes: OpenAI's client in a browser sends x-stainless-…
    "expose_headers": ["X-Request-Id", "Retry-After"],
}


def create_app(
    settings: Settings | None = None,
    *,
    loader: Loader | None = None,
    on_failure: Callable[[BaseException], None] | None = None,
) -> FastAPI:
    """The application. Its lifespan loads model and store in the background; `app.state.runtime` holds them.

    loader replaces how they are loaded; on_failure is told when that fails.
    """
    settings = settings or Settings()
    runtime = Runtime(settings, loader or _load, on_failure)
    spans = None if settings.otel_endpoint is None else tracing.provider(settings.otel_endpoint)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        runtime.start()
        watching = asyncio.create_task(runtime.watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.to_thread(runtime.stop)
            if spans is not None:
                await asyncio.to_thread(tracing.close, spans)

    app = FastAPI(
        title="mera-server",
        version=version("mera-server"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.runtime = runtime
    for module in (generate, classify, openai, tokens, store, ops, page):
        app.include_router(module.router(runtime))
    app.add_exception_handler(MeraError, on_mera_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_http_exception)
    # Each is put around those above it.
    app.add_middleware(Head)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(Running, flights=runtime.flights, room=runtime.room, seconds=settings.request_timeout)
    app.add_middleware(Access, ring=runtime.keys, rate=settings.rate_limit, burst=settings.burst)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Requests, metrics=runtime.metrics)
    if spans is not None:
        app.add_middleware(Traced, provider=spans)
    if settings.cors_origin:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origin, **_CORS)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _load(settings: Settings) -> Any:
    from mera_server.loading import load  # torch and transformers take seconds: not before they are needed

    return load(settings)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description, with the request bodies that the routes parse themselves and the events that they send."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, routes=app.routes)
        template = "#/components/schemas/{model}"
        shapes: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
            *((body, "validation") for module in (generate, classify, openai, tokens) for body in module.BODIES),
            *((reply, "serialization") for module in (generate, openai) for reply in module.REPLIES),
        ]
        _, models = models_json_schema(shapes, ref_template=template)
        described["components"]["schemas"].update(models["$defs"])
        _without_the_frameworks_own(described)
        _tell_of_keys(described)
        add_examples(described)
        app.openapi_schema = described
    return app.openapi_schema


def _without_the_frameworks_own(described: dict[str, Any]) -> None:
    """Takes away the 422 that FastAPI believes in wherever a path has a parameter: under /v1 there is none."""
    for path, methods in described["paths"].items():
        for operation in methods.values() if is_openai(path) else ():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        described["components"]["schemas"].pop(name, None)


def _tell_of_keys(described: dict[str, Any]) -> None:
    """Adds what a route answers to a caller without the key that it needs (`access.needed`)."""
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            if needed(method.upper(), path) is None:
                continue
            for status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                schema = {"$ref": f"#/components/schemas/{'OpenAIErrorReply' if is_openai(path) else 'ErrorReply'}"}
                told = {"description": status.phrase, "content": {"application/json": {"schema": schema}}}
                operation["responses"].setdefault(str(status.value), told)
