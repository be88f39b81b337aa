"""Examples of the OpenAPI description: bodies for the built-in model, some with their answers, and one error for each status.

A test sends every body and compares what comes back. `…` stands for the rest of a string, figures are rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mera_server.told import body_of, is_openai
from merasteer.errors import MeraError

__all__ = ["ANSWERS", "ERRORS", "FIELDS", "PLACES", "REQUESTS", "add_examples", "example_of"]

Example = Mapping[str, Any]

_TEXT = "Claim your reward before Thursday. Win a holiday for two."
_PROMPT = f'Message: "{_TEXT}" Is this ham or spam? Answer as desk B'
_STEERED = {
    "inputs": {"desk": "B", "text": _TEXT},
    "steering": {"task": "demo_spam"},
}
_GENERATE: Mapping[str, tuple[str, Example]] = {
    "steered": ("A task's template filled in, steered as the task's artifact says", _STEERED),
    "unsteered": ("A plain prompt, sampled with a seed", {
        "inputs": "Once upon a time",
        "parameters": {"max_new_tokens": 8, "temperature": 0.7, "top_p": 0.9, "seed": 7, "stop": ["\n"]},
    }),
    "overridden": ("Another α and another position than the artifact's; no certificate covers that", {
        "inputs": _PROMPT,
        "parameters": {"max_new_tokens": 4},
        "steering": {"task": "demo_spam", "method": "mera", "alpha": 0.2, "positions": "last", "layers": [1, 2]},
        "details": "trace",
    }),
}  # fmt: skip
_STREAMED: Mapping[str, tuple[str, Example]] = {
    "streamed": ("Server-sent events, one for each token", _STEERED | {"stream": True}),
}
_TASK_MODEL = {"model": "mera-demo:demo_spam"}

REQUESTS: Mapping[str, Mapping[str, tuple[str, Example]]] = {
    "/generate": {**_GENERATE, **_STREAMED},
    "/": {**_GENERATE, **_STREAMED},
    "/generate_stream": _STREAMED,
    "/classify": {
        "batch": ("Two inputs of one task in one batch", {
            "task": "demo_spam",
            "inputs": [{"desk": "A", "text": "See you at noon"}, {"desk": "B", "text": "Claim your prize"}],
        }),
        "strings": ("A template with one field takes strings", {
            "task": "demo_desk_a",
            "inputs": ["See you at noon", "Claim your prize"],
            "steering": {"method": "none"},
        }),
    },
    "/classify/{task}": {
        "text": ("A text, as Hugging Face's text_classification sends it", {"inputs": "See you at noon"}),
    },
    "/tokenize": {
        "text": ("The tokens of a text", {"prompt": "See you at noon", "return_token_strs": True}),
        "chat": ("Those of a chat", {"messages": [{"role": "user", "content": "See you at noon"}]}),
    },
    "/detokenize": {"tokens": ("The text of tokens", {"tokens": [272, 271]})},
    "/v1/completions": {
        "task": ("A task as a model's name", {**_TASK_MODEL, "prompt": _PROMPT, "logprobs": 0}),
        "choices": ("Two prompts, two seeded choices of each", {
            "model": "mera-demo", "prompt": ["Once upon", "Lunch at"], "n": 2, "max_tokens": 4, "temperature": 0.8, "seed": 3,
        }),
    },
    "/v1/chat/completions": {
        "task": ("A task as a model's name: the message is the task's own prompt", {
            **_TASK_MODEL, "messages": [{"role": "user", "content": _PROMPT}],
        }),
        "fields": ("A task's fields by name, in place of what the messages say", {
            **_TASK_MODEL, "messages": [{"role": "user", "content": ""}], "inputs": {"desk": "B", "text": _TEXT},
        }),
        "chat": ("The model's chat template, streamed with its usage", {
            "model": "mera-demo",
            "messages": [{"role": "user", "content": "See you at noon"}],
            "max_completion_tokens": 4,
            "stream": True,
            "stream_options": {"include_usage": True},
        }),
    },
}  # fmt: skip

_MERA = {
    "task": "demo_spam", "probe": "050dafb4…", "method": "mera", "decision": "steered", "reason": None, "alpha": 0.0374,
    "predicted_error": {"before": 0.0776, "after": 0.0374, "layer": 2, "position": "answer"},
    "steering": {
        "tokens": 1, "steered_tokens": 1, "cells": 4, "steered_cells": 4, "mean_shift": 0.203, "max_shift": 0.715,
    },
    "guarantee": {
        "certified": True, "why": None, "test": "mcnemar", "gain": 0.252, "lower_bound": 0.178, "epsilon": 0.0, "delta": 0.05,
        "level": 0.025, "attempt": 1, "n": 250,
    },
    "answer": {"label": "spam", "probabilities": {"ham": 0.035, "spam": 0.965}, "by": "model"},
    "trace": None,
}  # fmt: skip
_GENERATED = {
    "generated_text": " spam",
    "details": {"finish_reason": "length", "prompt_tokens": 34, "generated_tokens": 1, "seed": None},
    "mera": _MERA,
}
_USAGE = {"prompt_tokens": 34, "completion_tokens": 1, "total_tokens": 35}
_HEAD = {"created": 1790000000, "model": "mera-demo:demo_spam", "system_fingerprint": "mera-server-…", "usage": _USAGE}
_CHOICE = {"index": 0, "finish_reason": "length", "seed": None, "mera": _MERA}

ANSWERS: Mapping[str, tuple[str, Any]] = {  # path -> the name of the request, its answer
    "/generate": ("steered", _GENERATED),
    "/": ("steered", [_GENERATED]),
    "/classify": ("batch", {
        "task": "demo_spam",
        "probe": "050dafb4…",
        "results": [
            {
                "label": "ham", "probabilities": {"ham": 0.562, "spam": 0.438}, "by": "model", "decision": "steered", "reason": None,
                "predicted_error": {"before": 0.299, "after": 0.0374, "layer": 2, "position": "answer"}, "certified": True,
            },
            {
                "label": "spam", "probabilities": {"ham": 0.054, "spam": 0.946}, "by": "model", "decision": "steered", "reason": None,
                "predicted_error": {"before": 0.124, "after": 0.0374, "layer": 2, "position": "answer"}, "certified": True,
            },
        ],
        "usage": {"prompt_tokens": 40, "generated_tokens": 2},
    }),
    "/classify/{task}": ("text", [[{"label": "ham", "score": 0.527}, {"label": "spam", "score": 0.473}]]),
    "/detokenize": ("tokens", {"prompt": " ham spam", "content": " ham spam"}),
    "/v1/completions": ("task", {
        **_HEAD, "id": "cmpl-…", "object": "text_completion",
        "choices": [{**_CHOICE, "text": " spam", "logprobs": {
            "tokens": [" spam"], "token_logprobs": [-0.113], "top_logprobs": None, "text_offset": [0],
        }}],
    }),
    "/v1/chat/completions": ("task", {
        **_HEAD, "id": "chatcmpl-…", "object": "chat.completion",
        "choices": [{**_CHOICE, "message": {"role": "assistant", "content": " spam", "refusal": None}, "logprobs": None}],
    }),
}  # fmt: skip

FIELDS: Mapping[str, Sequence[Any]] = {  # field of a body -> values that the built-in model takes
    "model": ["mera-demo", "mera-demo:demo_spam"],
    "task": ["demo_spam"],
    "inputs": [_PROMPT],
    "prompt": [_PROMPT],
    "content": [_PROMPT],
    "messages": [[{"role": "user", "content": _PROMPT}]],
    "max_new_tokens": [1],
    "max_tokens": [1],
    "max_completion_tokens": [1],
    "stop": [["\n"]],
    "tokens": [[272, 271]],
}
_BODIES = (
    *("GenerateBody", "StreamBody", "LabelsBody", "CompletionBody", "ChatBody"),
    *("Message", "Parameters", "Steering", "DetokenizeBody"),
)

PLACES: Mapping[str, str] = {
    "digest": "050dafb4",
    "name": "mera-demo:demo_spam",
    "task": "demo_desk_a",
}  # what stands in a path

ERRORS: Mapping[str, tuple[str, str]] = {  # status -> code, message
    "401": ("unauthorized", "authorization: no key; send the header `Authorization: Bearer <key>`, once"),
    "403": ("forbidden", "authorization: this key's scope is read and this needs generate; use another key"),
    "400": ("not_json", 'body: not JSON in UTF-8; send an object such as {"inputs": "..."}'),
    "404": ("unknown_task", "steering.task: no such task; known tasks: demo_desk_a, demo_spam"),
    "405": ("method_not_allowed", "method: this route does not take it; use POST"),
    "413": ("too_large", "body: larger than the 1048576 bytes that this server takes; send less or raise max_body_bytes"),
    "422": ("invalid_input", "steering.alpha: got a number that is out of range; give a number in the open interval (0, 1)"),
    "429": ("overloaded", "engine: the waiting queue is full; try again later"),
    "500": ("internal_error", "internal error: the server's log has it under the X-Request-Id of this answer; report it"),
    "503": ("not_ready", "server: the model is loading or the server is stopping; ask /health/ready and try again"),
}  # fmt: skip


def example_of(status: str, path: str) -> MeraError:
    """The sample error of a status on a route: under /v1, 400 is what 422 is elsewhere."""
    code, message = ERRORS["422" if status == "400" and is_openai(path) else status]
    return next(kind for kind in _kinds(MeraError) if kind.code == code)(message)


def _kinds(kind: type[MeraError]) -> Iterator[type[MeraError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


def add_examples(described: dict[str, Any]) -> None:
    """Puts the examples into an OpenAPI description, in place."""
    for path, operations in described["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in PLACES:
                    parameter["example"] = PLACES[parameter["name"]]
            for status, response in operation["responses"].items():
                if status in ERRORS and "application/json" in response.get("content", {}):
                    _json(response)["example"] = body_of(example_of(status, path), path)
        if path in REQUESTS:
            _json(operations["post"]["requestBody"])["examples"] = {
                name: {"summary": summary, "value": body} for name, (summary, body) in REQUESTS[path].items()
            }
        if path in ANSWERS:
            name, answer = ANSWERS[path]
            _json(operations["post"]["responses"]["200"])["examples"] = {name: {"value": answer}}
    for body in _BODIES:
        for name, field in described["components"]["schemas"][body]["properties"].items():
            if name in FIELDS:
                field["examples"] = list(FIELDS[name])


def _json(part: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = part["content"]["application/json"]
    return content
