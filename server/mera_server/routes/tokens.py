"""`POST /tokenize` and `POST /detokenize`, in the forms that vLLM and llama.cpp have: how long a prompt is, before it is sent."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from mera_server.errors import parse
from mera_server.openai.asks import check_fields
from mera_server.openai.models import served, task_in
from mera_server.openai.prompts import chat_prompt
from mera_server.openai.schemas import ChatBody, DetokenizeBody, TokenizeBody
from mera_server.replies import DetokenizeReply, PieceReply, TokenizeReply
from mera_server.routes.generate import ERRORS, takes
from mera_server.runtime import Runtime
from merasteer.engine import Engine
from merasteer.errors import InvalidInput

__all__ = ["BODIES", "router"]

BODIES = (TokenizeBody, DetokenizeBody)
_RESPONSES: dict[int | str, dict[str, Any]] = {status: told for status, told in ERRORS.items() if status != 429}


def router(runtime: Runtime) -> APIRouter:
    """The routes over one runtime."""
    routes = APIRouter(responses=_RESPONSES)

    @routes.post("/tokenize", openapi_extra=takes(TokenizeBody))
    async def tokenize(request: Request) -> TokenizeReply:
        """The tokens of a text, or of a chat under the model's chat template."""
        serving = runtime.serving()
        body = parse(TokenizeBody, await request.body())
        task_in(body.model, served(serving, runtime.settings), serving.catalog)
        return await asyncio.to_thread(_told, body, serving.engine)

    @routes.post("/detokenize", openapi_extra=takes(DetokenizeBody))
    async def detokenize(request: Request) -> DetokenizeReply:
        """The text of tokens, special ones kept."""
        serving = runtime.serving()
        body = parse(DetokenizeBody, await request.body())
        task_in(body.model, served(serving, runtime.settings), serving.catalog)
        vocab = serving.engine.loaded.vocab
        if not all(token < vocab for token in body.tokens):
            raise InvalidInput(f"tokens: one is out of vocabulary, which has {vocab}; give smaller ids")
        text = await asyncio.to_thread(serving.engine.decode, body.tokens)
        return DetokenizeReply(prompt=text, content=text)

    return routes


def _told(body: TokenizeBody, engine: Engine) -> TokenizeReply:
    """The answer, with the tokens' texts where they are asked for."""
    tokens = _tokens(body, engine)
    texts = [engine.decode((token,)) for token in tokens] if body.return_token_strs or body.with_pieces else []
    pieces = [PieceReply(id=token, piece=text) for token, text in zip(tokens, texts, strict=False)]
    return TokenizeReply(
        count=len(tokens),
        max_model_len=engine.max_tokens,
        tokens=pieces if body.with_pieces else tokens,
        token_strs=texts if body.return_token_strs else None,
    )


def _tokens(body: TokenizeBody, engine: Engine) -> list[int]:
    """The tokens of whichever of the three was given."""
    given = {name: value for name in ("prompt", "content", "messages") if (value := getattr(body, name)) is not None}
    if len(given) != 1:
        raise InvalidInput("prompt: give either prompt, or messages, or content")
    if body.messages is not None:
        begins, goes_on = body.add_generation_prompt, body.continue_final_message
        chat = ChatBody(messages=body.messages, add_generation_prompt=begins, continue_final_message=goes_on)
        check_fields(chat)
        return list(chat_prompt(chat, None, engine).tokens)
    [text] = given.values()
    special = body.add_special_tokens if body.content is None else bool(body.add_special)
    if special is None or special:
        return list(engine.encode(text))
    return list(engine.loaded.tokenizer.encode(text, add_special_tokens=False))
