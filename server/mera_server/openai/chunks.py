"""Tokens as they come -> the chunks of a stream, `data: [DONE]` behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from mera_server.bridge import Finished
from mera_server.openai.answers import Head, Scored, ending, logprobs, text_of, usage, used
from mera_server.openai.asks import Ask
from mera_server.openai.schemas import ChatBody, CompletionBody
from mera_server.streaming import Piece, TokenStream, event
from merasteer.engine import Engine

__all__ = ["chunks"]

_DATA = b"data: "
DONE = _DATA + b"[DONE]\n\n"


async def chunks(
    body: CompletionBody | ChatBody, asks: Sequence[Ask], tokens: TokenStream, engine: Engine, head: Head
) -> AsyncIterator[bytes]:
    """One chunk for each token, behind the last of a choice one with finish_reason and `mera`, behind all of them the usage.

    Where the usage is asked for continuously, each chunk has what was read and generated up to its token, by all choices.
    A chat's choice begins with a chunk that has its role, an echoed prompt with one that has the prompt.
    """
    counted = body.stream_options is not None and bool(body.stream_options.include_usage)
    common = {**head, "object": "chat.completion.chunk" if isinstance(body, ChatBody) else "text_completion"}
    always = counted and body.stream_options is not None and bool(body.stream_options.continuous_usage_stats)
    if counted:
        common["usage"] = None
    begins = {ask.index: len(ask.echo) for ask in asks}
    found: list[Finished] = []
    generated = 0
    async for piece in tokens:
        ask = asks[piece.choice]
        generated += 1
        if always:
            common["usage"] = used(asks, generated).model_dump()
        for choice in _told(body, ask, piece, _scores(body, piece, engine, begins[ask.index])):
            made = {"index": ask.index, "logprobs": None, "finish_reason": None, **choice}
            yield event({**common, "choices": [made]}, _DATA)
        begins[ask.index] += len(piece.text)
        if piece.end is not None:
            found.append(piece.end)
    if counted:
        yield event({**common, "choices": [], "usage": usage(asks, found).model_dump()}, _DATA)
    yield DONE


def _scores(body: CompletionBody | ChatBody, piece: Piece, engine: Engine, begins: int) -> dict[str, Any] | None:
    """The token's log-probability, null unless asked for."""
    if piece.token.logprob is None:
        return None
    scores = logprobs(body, [Scored(engine.decode((piece.token.id,)), piece.token.logprob, begins)])
    return None if scores is None else scores.model_dump()


def _told(
    body: CompletionBody | ChatBody, ask: Ask, piece: Piece, scores: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """What a piece adds to its choice, in one chunk or several."""
    chat = isinstance(body, ChatBody)
    told: list[dict[str, Any]] = []
    if piece.token.index == 0 and (chat or ask.echo):
        told.append({"delta": {"role": "assistant", "content": ""}} if chat else {"text": ask.echo})
    text = piece.text if ask.labels is None else "" if piece.end is None else text_of(ask, piece.end)
    said: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
    step = {} if piece.step is None else {"step": piece.step}
    told.append({**said, "logprobs": scores, **step})
    if piece.end is not None:
        last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        told.append({**last, **ending(ask, piece.end), "mera": piece.end.shown.model_dump()})
    return told
