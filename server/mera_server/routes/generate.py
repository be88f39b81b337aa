"""`POST /generate`: text-generation-inference's schema, `steering` in and `mera` out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from mera_server.bridge import answer
from mera_server.errors import parse
from mera_server.replies import ErrorReply, GenerateReply
from mera_server.runtime import Runtime
from mera_server.schemas import GenerateBody

__all__ = ["BODIES", "router"]

BODIES = (GenerateBody,)
_STATUSES = (400, 404, 405, 413, 422, 429, 500, 503)
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorReply} for status in _STATUSES}


def _takes(model: type) -> dict[str, Any]:
    """The OpenAPI request body: it is parsed here, not by the framework, so that every failure has one shape."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def router(runtime: Runtime) -> APIRouter:
    """The route over one runtime."""
    routes = APIRouter()

    @routes.post("/generate", response_model=GenerateReply, responses=ERRORS, openapi_extra=_takes(GenerateBody))
    async def generate(request: Request) -> Response:
        """Generates text, steered as the task's artifact says; `mera` tells what was done."""
        body = parse(GenerateBody, await request.body())
        reply = await answer(runtime, body, request)
        return Response(reply.json_bytes(), media_type="application/json")

    return routes
