"""`POST /generate`, `/generate_stream` and `/`: text-generation-inference's schema, `steering` in and `mera` out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mera_server.bridge import answer
from mera_server.errors import parse
from mera_server.replies import ErrorReply, GenerateReply, StreamReply
from mera_server.report import details
from mera_server.resolve import plan
from mera_server.runtime import Runtime
from mera_server.schemas import GenerateBody, StreamBody
from mera_server.streaming import EventStream, Piece, TokenStream, event, open_stream

__all__ = ["BODIES", "ERRORS", "REPLIES", "events", "router", "takes"]

BODIES = (GenerateBody, StreamBody)
REPLIES = (StreamReply,)
_STATUSES = (400, 401, 403, 404, 405, 413, 422, 429, 500, 503)
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorReply} for status in _STATUSES}


def takes(model: type) -> dict[str, Any]:
    """The OpenAPI request body: it is parsed here, not by the framework, so that every failure has one shape."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def events(model: type, error: type = ErrorReply, last: str | None = None) -> dict[str, Any]:
    """The OpenAPI content of a stream, as OpenAPI 3.2 tells one event: its data is a `model`, an error, or the text of the last."""
    either = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in (model, error)]
    told = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": either}}
    data = told if last is None else {"anyOf": [told, {"const": last}]}
    return {"text/event-stream": {"itemSchema": {"type": "object", "properties": {"data": data}, "required": ["data"]}}}


def router(runtime: Runtime) -> APIRouter:
    """The routes over one runtime."""
    routes = APIRouter()
    either: dict[int | str, dict[str, Any]] = {**ERRORS, 200: {"content": events(StreamReply)}}

    @routes.post("/generate", response_model=GenerateReply, responses=either, openapi_extra=takes(GenerateBody))
    async def generate(request: Request) -> Response:
        """Generates text, steered as the task's artifact says; `mera` tells what was done. With `stream`, token by token."""
        body = parse(GenerateBody, await request.body())
        if body.stream:
            return await _stream(runtime, body, request)
        return _json((await answer(runtime, body, request)).json_bytes())

    @routes.post(
        "/generate_stream", response_class=StreamingResponse, responses=either, openapi_extra=takes(StreamBody)
    )
    async def generate_stream(request: Request) -> Response:
        """As `/generate` with `stream`: server-sent events, one for each token."""
        return await _stream(runtime, parse(StreamBody, await request.body()), request)

    @routes.post("/", response_model=list[GenerateReply], responses=either, openapi_extra=takes(GenerateBody))
    async def compatible(request: Request) -> Response:
        """As `/generate`; the plain answer is a list of one, as clients of text-generation-inference expect here."""
        body = parse(GenerateBody, await request.body())
        if body.stream:
            return await _stream(runtime, body, request)
        return _json(b"[" + (await answer(runtime, body, request)).json_bytes() + b"]")

    return routes


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


async def _stream(runtime: Runtime, body: GenerateBody, request: Request) -> Response:
    planned = plan(body, runtime.serving().catalog, runtime.limits)
    tokens = await open_stream(runtime, [replace(planned, tokens=True)], request)  # every event has its logprob
    return EventStream(tokens, _events(tokens))


async def _events(tokens: TokenStream) -> AsyncIterator[bytes]:
    async for piece in tokens:
        yield event(_told(piece))


def _told(piece: Piece) -> dict[str, Any]:
    """A `StreamReply`, as plain values: one for each token."""
    token, end = piece.token, piece.end
    told: dict[str, Any] = {
        "index": token.index + 1,
        "token": {"id": token.id, "text": piece.text, "logprob": token.logprob, "special": piece.special},
        "step": piece.step,
        "generated_text": None,
        "details": None,
        "mera": None,
    }
    if end is not None:
        head = end.plan.prompt if end.plan.full_text else ""
        told["generated_text"] = head + end.generation.text
        told["details"] = details(end.plan, end.generation)
        told["mera"] = end.shown.model_dump()
    return told
