"""The request bodies of OpenAI's routes, with `steering` and `details` beside its own fields.

Each field is served, or taken at its neutral value only, or a tag of the caller's that changes no answer on OpenAI's side either
(`user`, `metadata`, `safety_identifier`, `prompt_cache_key`). There is no fourth kind: what is not listed is an unknown field.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, WithJsonSchema
from pydantic_core import PydanticCustomError

from mera_server.schemas import MAX_STOP_STRINGS, Steering, Strict, _finite, _only

__all__ = ["MAX_CHOICES", "ChatBody", "CompletionBody", "Message", "OpenAIBody", "StreamOptions", "TextPart"]

MAX_CHOICES = 128  # n times the prompts of one request, as many as OpenAI allows for n

StopString = Annotated[str, Field(min_length=1, max_length=256)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Strings = Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
TokenLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES)]


def _at_most_one(value: int | None) -> int | None:
    """The engine knows the chosen token's log-probability, not the runners-up."""
    if value is not None and value > 1:
        raise PydanticCustomError("unsupported", "alternatives are not computed")
    return value


ALTERNATIVES = (AfterValidator(_at_most_one), WithJsonSchema({"enum": [0, 1, None]}))


class StreamOptions(Strict):
    """How a stream is told."""

    include_usage: Annotated[bool | None, Field(description="true, false or null")] = None
    include_obfuscation: Annotated[bool | None, _only(False), Field(description="false or null")] = None


class OpenAIBody(Strict):
    """What both routes take."""

    model: Annotated[
        str, Field(min_length=1, description="the served model's name, or <model>:<task>, see GET /v1/models")
    ]
    max_tokens: Annotated[int | None, Field(ge=1, description="a positive integer")] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES, description=f"an integer from 1 to {MAX_CHOICES}")] = None
    temperature: Annotated[
        float | None, Field(ge=0, le=100, description="a number from 0 to 100, 0 or null for greedy")
    ] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, description="a number above 0, at most 1")] = None
    top_k: Annotated[int | None, Field(ge=1, le=2**31 - 1, description="a positive integer")] = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None,
        Field(description=f"a string of 1 to 256 characters, or an array of at most {MAX_STOP_STRINGS} of them"),
    ] = None
    seed: Annotated[int | None, Field(ge=0, le=2**63 - 1, description="an integer from 0 to 2^63 - 1")] = None
    stream: Annotated[bool | None, Field(description="true, false or null")] = None
    stream_options: Annotated[
        StreamOptions | None, Field(description='an object such as {"include_usage": true}, with stream only')
    ] = None
    steering: Annotated[Steering | None, Field(description='an object such as {"task": "..."}')] = None
    details: Annotated[Literal["none", "summary", "trace"] | None, Field(description="none, summary or trace")] = None
    user: Annotated[str | None, Field(description="a string, which changes nothing")] = None

    frequency_penalty: Annotated[float | None, _only(0), Field(description="0 or null")] = None
    presence_penalty: Annotated[float | None, _only(0), Field(description="0 or null")] = None
    logit_bias: Annotated[dict[str, float] | None, _only({}), Field(description="{} or null")] = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however many were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def budget(self) -> tuple[str, int | None]:
        """The field that bounds the new tokens, and its value."""
        return "max_tokens", self.max_tokens


class CompletionBody(OpenAIBody):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[
        str | Strings | TokenIds | TokenLists,
        Field(description=f"a string, an array of token ids, or an array of 1 to {MAX_CHOICES} of either"),
    ]
    echo: Annotated[bool | None, Field(description="true, false or null")] = None
    logprobs: Annotated[
        int | None,
        Field(ge=0, description="0 for the chosen tokens' log-probabilities, or 1 where decoding is greedy"),
        *ALTERNATIVES,
    ] = None

    best_of: Annotated[int | None, _only(1), Field(description="1 or null")] = None
    suffix: Annotated[str | None, _only(""), Field(description="an empty string or null")] = None

    @property
    def alternatives(self) -> tuple[str, int | None]:
        """The field that asks for log-probabilities, and for how many tokens beside the chosen one; None for none at all."""
        return "logprobs", self.logprobs


class TextPart(Strict):
    """One part of a message."""

    type: Annotated[Literal["text"], Field(description="text")]
    text: Annotated[str, Field(description="a string")]


class Message(Strict):
    """One message of a chat. The last five are there in the answers of OpenAI's client, which callers send back as they are."""

    role: Annotated[
        Literal["system", "developer", "user", "assistant"],
        Field(description="system, developer, user or assistant"),
    ]
    content: Annotated[
        str | Annotated[list[TextPart], Field(min_length=1)],
        Field(description='a string, or an array of {"type": "text", "text": "..."}'),
    ]

    name: Annotated[str | None, _only(), Field(description="null")] = None
    refusal: Annotated[str | None, _only(""), Field(description="null")] = None
    annotations: Annotated[list[JsonValue] | None, _only([]), Field(description="[] or null")] = None
    audio: Annotated[JsonValue, _only(), Field(description="null")] = None
    function_call: Annotated[JsonValue, _only(), Field(description="null")] = None
    tool_calls: Annotated[list[JsonValue] | None, _only([]), Field(description="[] or null")] = None

    @property
    def text(self) -> str:
        """The content as one string, its parts one a line."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class ChatBody(OpenAIBody):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[
        list[Message],
        Field(min_length=1, description='an array of messages such as {"role": "user", "content": "..."}'),
    ]
    max_completion_tokens: Annotated[int | None, Field(ge=1, description="a positive integer")] = None
    logprobs: Annotated[bool | None, Field(description="true, false or null")] = None
    top_logprobs: Annotated[
        int | None,
        Field(ge=0, description="0 or null, or 1 where decoding is greedy; with logprobs only"),
        *ALTERNATIVES,
    ] = None
    inputs: Annotated[
        dict[str, JsonValue] | None,
        AfterValidator(_finite),
        Field(
            description="an object with the fields of the task that the model's name carries, in place of the messages' text"
        ),
    ] = None
    metadata: Annotated[dict[str, str] | None, Field(description="an object of strings, which changes nothing")] = None
    safety_identifier: Annotated[str | None, Field(description="a string, which changes nothing")] = None
    prompt_cache_key: Annotated[str | None, Field(description="a string, which changes nothing")] = None

    audio: Annotated[JsonValue, _only(), Field(description="null")] = None
    function_call: Annotated[JsonValue, _only("none"), Field(description="none or null")] = None
    functions: Annotated[list[JsonValue] | None, _only([]), Field(description="[] or null")] = None
    modalities: Annotated[list[str] | None, _only(["text"]), Field(description='["text"] or null')] = None
    moderation: Annotated[JsonValue, _only(), Field(description="null")] = None
    parallel_tool_calls: Annotated[bool | None, _only(True, False), Field(description="true, false or null")] = None
    prediction: Annotated[JsonValue, _only(), Field(description="null")] = None
    prompt_cache_options: Annotated[JsonValue, _only(), Field(description="null")] = None
    prompt_cache_retention: Annotated[str | None, _only(), Field(description="null")] = None
    reasoning_effort: Annotated[str | None, _only("none"), Field(description="none or null")] = None
    response_format: Annotated[
        dict[str, JsonValue] | None, _only({"type": "text"}), Field(description='{"type": "text"} or null')
    ] = None
    service_tier: Annotated[str | None, _only("auto", "default"), Field(description="auto, default or null")] = None
    store: Annotated[bool | None, _only(False), Field(description="false or null")] = None
    tool_choice: Annotated[JsonValue, _only("none", "auto"), Field(description="none, auto or null")] = None
    tools: Annotated[list[JsonValue] | None, _only([]), Field(description="[] or null")] = None
    verbosity: Annotated[str | None, _only("medium"), Field(description="medium or null")] = None
    web_search_options: Annotated[JsonValue, _only(), Field(description="null")] = None

    @property
    def budget(self) -> tuple[str, int | None]:
        """The field that bounds the new tokens, and its value. max_completion_tokens is the newer name of max_tokens."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().budget

    @property
    def alternatives(self) -> tuple[str, int | None]:
        """The field that asks for log-probabilities, and for how many tokens beside the chosen one; None for none at all."""
        return "top_logprobs", (self.top_logprobs or 0) if self.logprobs else None
