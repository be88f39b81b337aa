"""For operators: `/info`, `/health/live`, `/health/ready`, `/metrics`."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from mera_server.openai.models import served
from mera_server.replies import ErrorReply
from mera_server.runtime import Runtime
from mera_server.schemas import MAX_INPUTS, MAX_STOP_STRINGS

__all__ = ["router"]

NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ErrorReply}}


def router(runtime: Runtime) -> APIRouter:
    """The routes over one runtime."""
    routes = APIRouter()

    @routes.get("/health", responses=NOT_READY)
    async def health() -> dict[str, str]:
        """As `/health/ready`, where other servers have it."""
        runtime.ready()
        return {"status": "ok"}

    @routes.get("/version")
    async def told() -> dict[str, str]:
        """The server's version."""
        return {"version": version("mera-server")}

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
        loaded, limits = engine.loaded, runtime.limits
        facts = ("id", "architecture", "layers", "width", "vocab", "context", "dtype", "attention", "device")
        return {
            "version": version("mera-server"),
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "model": {name: getattr(loaded, name) for name in facts},
            "max_tokens": engine.max_tokens,
            "model_id": served(runtime.serving(), runtime.settings).names[0],
            "model_dtype": loaded.dtype,
            "model_device_type": str(loaded.device).partition(":")[0],
            "max_input_tokens": min(limits.max_prompt_tokens or engine.max_tokens, engine.max_tokens - 1),
            "max_total_tokens": engine.max_tokens,
            "max_new_tokens": limits.max_new_tokens or engine.max_tokens - 1,
            "max_concurrent_requests": engine.config.max_requests,
            "max_client_batch_size": MAX_INPUTS,
            "max_stop_sequences": MAX_STOP_STRINGS,
            "max_best_of": 1,
            "config": runtime.settings.model_dump(mode="json") | asdict(engine.config),
        }

    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus' plain text format."""
        return Response(runtime.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return routes
