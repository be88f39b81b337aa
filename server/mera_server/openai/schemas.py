"""The request bodies of OpenAI's routes, with `steering` and `details` beside its own fields.

Each field is served, or taken at its neutral values only (`neutral.py`), or a tag of the caller's that changes no answer on OpenAI's side
either (`user`, `metadata`, `safety_identifier`, `prompt_cache_key`). There is no fourth kind: what is not listed is an unknown field.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, WithJsonSchema
from pydantic_core import PydanticCustomError

from mera_server.neutral import neutral_fields
from mera_server.schemas import MAX_STOP_STRINGS, IgnoreEos, Steering, Strict, TopK, _finite

__all__ = [
    "MAX_CHOICES",
    "ChatBody",
    "CompletionBody",
    "DetokenizeBody",
    "Message",
    "OpenAIBody",
    "StreamOptions",
    "TextPart",
    "TokenizeBody",
]

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


@neutral_fields
class StreamOptions(Strict):
    """How a stream is told."""

    include_usage: Annotated[bool | None, Field(description="true, false or null")] = None
    continuous_usage_stats: Annotated[bool | None, Field(description="true, false or null")] = None


class OpenAIBody(Strict):
    """What both routes take."""

    model: Annotated[
        str | None,
        Field(description="the served model's name, or <model>:<task>, see GET /v1/models; null: the served one"),
    ] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="a positive integer")] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES, description=f"an integer from 1 to {MAX_CHOICES}")] = None
    temperature: Annotated[
        float | None, Field(ge=0, le=100, description="a number from 0 to 100, 0 or null for greedy")
    ] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, description="a number above 0, at most 1")] = None
    top_k: TopK = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None,
        Field(description=f"a string of 1 to 256 characters, or an array of at most {MAX_STOP_STRINGS} of them"),
    ] = None
    seed: Annotated[int | None, Field(ge=0, le=2**63 - 1, description="an integer from 0 to 2^63 - 1")] = None
    ignore_eos: IgnoreEos = None
    stream: Annotated[bool | None, Field(description="true, false or null")] = None
    stream_options: Annotated[
        StreamOptions | None, Field(description='an object such as {"include_usage": true}, with stream only')
    ] = None
    steering: Annotated[Steering | None, Field(description='an object such as {"task": "..."}')] = None
    details: Annotated[Literal["none", "summary", "trace"] | None, Field(description="none, summary or trace")] = None
    user: Annotated[str | None, Field(description="a string, which changes nothing")] = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however many were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def budget(self) -> tuple[str, int | None]:
        """The field that bounds the new tokens, and its value."""
        return "max_tokens", self.max_tokens


@neutral_fields
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

    @property
    def alternatives(self) -> tuple[str, int | None]:
        """The field that asks for log-probabilities, and for how many tokens beside the chosen one; None for none at all."""
        return "logprobs", self.logprobs


@neutral_fields
class TextPart(Strict):
    """One part of a message."""

    type: Annotated[Literal["text"], Field(description="text")]
    text: Annotated[str, Field(description="a string")]


@neutral_fields
class Message(Strict):
    """One message of a chat, or an answer of OpenAI's client, which callers send back as it is."""

    role: Annotated[
        str,
        Field(
            pattern=r"^[\w.-]{1,64}$",
            description="system, developer, user or assistant, or another that the model's chat template shows",
        ),
    ]
    content: Annotated[
        str | Annotated[list[TextPart], Field(min_length=1)] | None,
        Field(
            description='a string, or an array of {"type": "text", "text": "..."}; null for an assistant that said nothing'
        ),
    ] = None
    name: Annotated[
        str | None, Field(min_length=1, max_length=64, description="a string of 1 to 64 characters, for the template")
    ] = None

    @property
    def text(self) -> str:
        """The content as one string, its parts one a line."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(part.text for part in self.content)


@neutral_fields
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
    continue_final_message: Annotated[
        bool | None, Field(description="true, false or null; null is true where an assistant's message is the last")
    ] = None
    add_generation_prompt: Annotated[
        bool | None, Field(description="true, false or null; null is true unless the last message is continued")
    ] = None
    metadata: Annotated[dict[str, str] | None, Field(description="an object of strings, which changes nothing")] = None
    safety_identifier: Annotated[str | None, Field(description="a string, which changes nothing")] = None
    prompt_cache_key: Annotated[str | None, Field(description="a string, which changes nothing")] = None

    response_format: Annotated[
        dict[str, JsonValue] | None,
        AfterValidator(_finite),
        Field(description='{"type": "text"}, or a json_schema with one enum property of the task\'s labels'),
    ] = None

    @property
    def continues(self) -> bool:
        """Whether the answer goes on where the last message, an assistant's, stops."""
        if self.continue_final_message is not None:
            return self.continue_final_message
        return bool(self.messages[-1].role == "assistant" and self.messages[-1].text and not self.add_generation_prompt)

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


class TokenizeBody(Strict):
    """The body of `POST /tokenize`: a text in vLLM's form or in llama.cpp's, or a chat."""

    model: Annotated[str | None, Field(description="the served model's name, or null")] = None
    prompt: Annotated[str | None, Field(description="a string")] = None
    content: Annotated[str | None, Field(description="a string, as llama.cpp calls it")] = None
    messages: Annotated[list[Message] | None, Field(min_length=1, description="an array of messages")] = None
    add_special_tokens: Annotated[bool | None, Field(description="true, false or null; of prompt, null is true")] = None
    add_special: Annotated[bool | None, Field(description="true, false or null; of content, null is false")] = None
    continue_final_message: Annotated[bool | None, Field(description="true, false or null, as for chats")] = None
    add_generation_prompt: Annotated[bool | None, Field(description="true, false or null, as for chats")] = None
    return_token_strs: Annotated[bool | None, Field(description="true, false or null; true adds the tokens' texts")] = (
        None
    )
    with_pieces: Annotated[
        bool | None, Field(description="true, false or null; true tells each token with its text")
    ] = None


class DetokenizeBody(Strict):
    """The body of `POST /detokenize`."""

    model: Annotated[str | None, Field(description="the served model's name, or null")] = None
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(description="an array of token ids")]
