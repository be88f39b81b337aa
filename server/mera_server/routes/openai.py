"""`GET /v1/models`, `POST /v1/completions` and `POST /v1/chat/completions`: OpenAI's schemas, `steering` in and `mera` out."""

from __future__ import annotations

import asyncio
import time
import uuid
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from mera_server.bridge import complete
from mera_server.errors import parse
from mera_server.loading import Serving
from mera_server.openai.answers import Head, reply
from mera_server.openai.asks import Ask, asks_of, check_fields, in_words_of, with_context
from mera_server.openai.chunks import chunks
from mera_server.openai.models import listing, model_of, served, task_in
from mera_server.openai.prompts import chat_prompt, prompts_of
from mera_server.openai.replies import (
    ChatChunk,
    ChatReply,
    CompletionChunk,
    CompletionReply,
    ModelReply,
    ModelsReply,
    OpenAIErrorReply,
)
from mera_server.openai.schemas import ChatBody, CompletionBody
from mera_server.routes.generate import events, takes
from mera_server.runtime import Runtime
from mera_server.streaming import EventStream, open_stream
from merasteer.errors import MeraError

__all__ = ["BODIES", "REPLIES", "router"]

BODIES = (CompletionBody, ChatBody)
REPLIES = (CompletionChunk, ChatChunk)
_STATUSES = (400, 401, 403, 404, 405, 413, 429, 500, 503)
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": OpenAIErrorReply} for status in _STATUSES}

_SHORT = 8192  # bytes of a body whose prompts are tokenized on the event loop; those of longer ones are in a thread


def router(runtime: Runtime) -> APIRouter:
    """The routes over one runtime."""
    routes, started = APIRouter(prefix="/v1"), int(time.time())

    @routes.get("/models", responses={503: ERRORS[503]})
    async def models() -> ModelsReply:
        """The model, and one name for each of its certified tasks."""
        serving = runtime.serving()
        return listing(served(serving, runtime.settings, started), serving.catalog)

    @routes.get("/models/{name:path}", responses={status: ERRORS[status] for status in (400, 404, 503)})
    async def model(name: str) -> ModelReply:
        """One model, which may be `<model>:<task>` for any task of `/tasks`."""
        serving = runtime.serving()
        return model_of(name, served(serving, runtime.settings, started), serving.catalog)

    @routes.post(
        "/completions",
        response_model=CompletionReply,
        responses={**ERRORS, 200: {"content": events(CompletionChunk, OpenAIErrorReply, "[DONE]")}},
        openapi_extra=takes(CompletionBody),
    )
    async def completions(request: Request) -> Response:
        """Continues prompts, steered as the task's artifact says; `mera` tells in every choice what was done."""
        raw = await request.body()
        return await _answer(runtime, parse(CompletionBody, raw), request, "cmpl", len(raw))

    @routes.post(
        "/chat/completions",
        response_model=ChatReply,
        responses={**ERRORS, 200: {"content": events(ChatChunk, OpenAIErrorReply, "[DONE]")}},
        openapi_extra=takes(ChatBody),
    )
    async def chat(request: Request) -> Response:
        """Answers a chat by the model's chat template; by the task's own prompt where the model's name carries a task."""
        raw = await request.body()
        return await _answer(runtime, parse(ChatBody, raw), request, "chatcmpl", len(raw))

    return routes


async def _answer(
    runtime: Runtime, body: CompletionBody | ChatBody, request: Request, kind: str, size: int
) -> Response:
    """The answer, or its events. All choices are one batch."""
    serving = runtime.serving()
    check_fields(body)
    asks = _asks(runtime, serving, body) if size <= _SHORT else await asyncio.to_thread(_asks, runtime, serving, body)
    plans, prompts = [ask.plan for ask in asks], [ask.prompt.tokens for ask in asks]
    head: Head = {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": served(serving, runtime.settings).named(body.model),
        "system_fingerprint": f"mera-server-{version('mera-server')}",
    }

    def named(choice: int, error: MeraError) -> MeraError:
        return with_context(in_words_of(body, asks[choice].prompt.field, error), serving.engine.max_tokens)

    if body.stream:
        tokens = await open_stream(runtime, plans, request, named, prompts)
        return EventStream(tokens, chunks(body, asks, tokens, serving.engine, head))
    found = await complete(runtime, plans, request, named, prompts)
    answered = reply(body, asks, found, serving.engine, head)
    return Response(answered.model_dump_json(), media_type="application/json")


def _asks(runtime: Runtime, serving: Serving, body: CompletionBody | ChatBody) -> list[Ask]:
    engine, catalog = serving.engine, serving.catalog
    task = task_in(body.model, served(serving, runtime.settings), catalog)
    prompts = (
        prompts_of(body.prompt, engine)
        if isinstance(body, CompletionBody)
        else [chat_prompt(body, None if task is None else catalog.prompter(task), engine)]
    )
    return asks_of(body, prompts, task, catalog, runtime.limits, engine.max_tokens)
