"""For operators: `/info`, `/health/live`, `/health/ready`, `/metrics`."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from mera_server.replies import ErrorReply
from mera_server.runtime import Runtime

__all__ = ["router"]

NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ErrorReply}}


def router(runtime: Runtime) -> APIRouter:
    """The routes over one runtime."""
    routes = APIRouter()

    @routes.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @routes.get("/health/ready", responses=NOT_READY)
    async def ready() -> dict[str, str]:
        """Model and store are loaded, the generation loop runs, and the server is not stopping; 503 otherwise."""
        runtime.ready()
        return {"status": "ready"}

    @routes.get("/info", responses=NOT_READY)
    async def info() -> dict[str, Any]:
        """The model, the versions and the effective configuration."""
        engine = runtime.serving().engine
        facts = ("id", "architecture", "layers", "width", "vocab", "context", "dtype", "attention", "device")
        return {
            "version": version("mera-server"),
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "model": {name: getattr(engine.loaded, name) for name in facts},
            "max_tokens": engine.max_tokens,
            "config": runtime.settings.model_dump(mode="json") | asdict(engine.config),
        }

    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus' plain text format."""
        return Response(runtime.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return routes
