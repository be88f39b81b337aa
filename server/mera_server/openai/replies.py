"""The response bodies of OpenAI's routes: its own fields, with `mera` and `seed` in every choice."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mera_server.replies import BriefReply, MeraReply, Reply, StepReply, TaskReply
from mera_server.told import OpenAIErrorType

__all__ = [
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatDelta",
    "ChatLogprobs",
    "ChatMessage",
    "ChatReply",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionChunkChoice",
    "CompletionLogprobs",
    "CompletionReply",
    "FinishReason",
    "ModelReply",
    "ModelsReply",
    "OpenAIErrorDetail",
    "OpenAIErrorReply",
    "TokenLogprob",
    "TopLogprob",
    "Usage",
]

FinishReason = Literal["stop", "length"]
Seed = Annotated[int | None, Field(description="the seed that was used; null when greedy")]


class OpenAIErrorDetail(Reply):
    message: str
    type: OpenAIErrorType
    param: Annotated[str | None, Field(description="the field that it is about")]
    code: str


class OpenAIErrorReply(Reply):
    """The one body of every error under /v1."""

    error: OpenAIErrorDetail


class Usage(Reply):
    """Tokens read, each prompt once, and generated, by all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(Reply):
    """One entry for each generated token. top_logprobs is null unless an alternative was asked for."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    seed: Seed
    mera: MeraReply | BriefReply


class CompletionReply(Reply):
    """The answer of `POST /v1/completions`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(Reply):
    """finish_reason, seed and mera come with the last chunk of a choice; step with a token, unless `details` is none."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    seed: Seed = None
    mera: MeraReply | BriefReply | None = None
    step: StepReply | None = None


class CompletionChunk(Reply):
    """One chunk of a completion that is streamed."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


class TopLogprob(Reply):
    """A token; bytes is null where it is only a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A generated token. top_logprobs is empty unless an alternative was asked for."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    """One entry for each generated token."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(Reply):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Reply):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    seed: Seed
    mera: MeraReply | BriefReply


class ChatReply(Reply):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(Reply):
    """What a chunk adds to a choice's message: first the role, then text, in the last chunk nothing."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Reply):
    """finish_reason, seed and mera come with the last chunk of a choice; step with a token, unless `details` is none."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    seed: Seed = None
    mera: MeraReply | BriefReply | None = None
    step: StepReply | None = None


class ChatChunk(Reply):
    """One chunk of a chat that is streamed."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class ModelReply(Reply):
    """A model's name. One that carries a task has the model's own as `parent`, and the task as in `GET /tasks`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["mera-server"] = "mera-server"
    root: Annotated[str, Field(description="the model's own id, whatever it is called here")]
    max_model_len: Annotated[int, Field(description="tokens of a prompt and its answer together, at most")]
    parent: str | None = None
    task: TaskReply | None = None


class ModelsReply(Reply):
    object: Literal["list"] = "list"
    data: list[ModelReply]
