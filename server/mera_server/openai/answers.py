"""Finished choices -> the answer's body. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mera_server.bridge import Finished
from mera_server.openai.asks import Ask
from mera_server.openai.replies import (
    ChatChoice,
    ChatLogprobs,
    ChatMessage,
    ChatReply,
    CompletionChoice,
    CompletionLogprobs,
    CompletionReply,
    FinishReason,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from mera_server.openai.schemas import ChatBody, CompletionBody
from merasteer.engine import Engine

__all__ = ["Head", "Scored", "ending", "logprobs", "reply", "text_of", "usage", "used"]

Head = dict[str, Any]  # id, created, model, system_fingerprint: the same in every chunk of a stream
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Scored:
    """A generated token: its own text, its log-probability, and where in the choice's text that begins which it made certain."""

    text: str
    logprob: float
    offset: int


def reply(
    body: CompletionBody | ChatBody, asks: Sequence[Ask], found: Sequence[Finished], engine: Engine, head: Head
) -> CompletionReply | ChatReply:
    """The answer of all choices."""
    choices = [
        {
            "index": ask.index,
            "logprobs": logprobs(body, _scored(ask, end, engine)),
            "mera": end.shown,
            "text": text_of(ask, end),
            **ending(ask, end),
        }
        for ask, end in zip(asks, found, strict=True)
    ]
    total = usage(asks, found)
    if isinstance(body, CompletionBody):
        return CompletionReply(**head, choices=[CompletionChoice(**choice) for choice in choices], usage=total)
    said = [ChatChoice(message=ChatMessage(content=choice.pop("text")), **choice) for choice in choices]
    return ChatReply(**head, choices=said, usage=total)


def text_of(ask: Ask, end: Finished) -> str:
    """The text of a finished choice; where a schema was given, the JSON that fits it."""
    if ask.labels is not None:
        return ask.labels.text(None if end.mera.answer is None else end.mera.answer.label)
    return ask.echo + end.generation.text


def ending(ask: Ask, end: Finished) -> dict[str, Any]:
    """Why a choice ended, and the seed that it drew with, null when greedy. A schema's answer is complete, so it stopped."""
    cut = end.generation.finish_reason == "length" and ask.labels is None
    reason: FinishReason = "length" if cut else "stop"
    return {"finish_reason": reason, "seed": None if end.plan.sampling.greedy else end.plan.sampling.seed}


def usage(asks: Iterable[Ask], found: Iterable[Finished]) -> Usage:
    """Tokens read, those of a prompt once for all its choices, and tokens generated."""
    return used(asks, sum(len(end.generation.tokens) for end in found))


def used(asks: Iterable[Ask], generated: int) -> Usage:
    """The usage once so many tokens are generated."""
    read = sum({id(ask.prompt): len(ask.prompt.tokens) for ask in asks}.values())
    return Usage(prompt_tokens=read, completion_tokens=generated, total_tokens=read + generated)


def logprobs(body: CompletionBody | ChatBody, tokens: Sequence[Scored]) -> CompletionLogprobs | ChatLogprobs | None:
    """The log-probabilities of some tokens in the route's form, null unless asked for.

    The one alternative that may be asked for is the likeliest token, under greedy decoding the chosen one.
    """
    _, alternatives = body.alternatives
    if alternatives is None:
        return None
    if isinstance(body, CompletionBody):
        return CompletionLogprobs(
            tokens=[token.text for token in tokens],
            token_logprobs=[token.logprob for token in tokens],
            top_logprobs=[{token.text: token.logprob} for token in tokens] if alternatives else None,
            text_offset=[token.offset for token in tokens],
        )
    return ChatLogprobs(content=[_chat_token(token, alternatives) for token in tokens])


def _chat_token(token: Scored, alternatives: int) -> TokenLogprob:
    raw = None if _BROKEN in token.text else list(token.text.encode())
    facts: dict[str, Any] = {"token": token.text, "logprob": token.logprob, "bytes": raw}
    return TokenLogprob(**facts, top_logprobs=[TopLogprob(**facts)] * alternatives)


def _scored(ask: Ask, end: Finished, engine: Engine) -> list[Scored]:
    """The tokens of a finished choice; empty where the engine was not asked for log-probabilities."""
    made, begins = end.generation, len(ask.echo)
    if made.logprobs is None:
        return []
    rows = zip(made.tokens, made.logprobs, made.offsets, strict=True)
    return [Scored(engine.decode((token,)), logprob, begins + offset) for token, logprob, offset in rows]
