"""One error, two forms: this server's with `error_type` for text-generation clients, and OpenAI's under /v1."""

from __future__ import annotations

import pytest
from mera_server.openai.replies import OpenAIErrorReply
from mera_server.replies import ErrorReply
from mera_server.told import body_of, event_of, is_openai, status_of

from merasteer.errors import (
    DeadlineExceeded,
    EmptyInputs,
    EngineFailed,
    Forbidden,
    InvalidInput,
    MeraError,
    NonFinite,
    NotReady,
    PromptTooLong,
    RateLimited,
    Unauthorized,
    UnknownModel,
)

ALL = [
    (InvalidInput("n: got a string; give an integer"), 400, "invalid_request_error", "n", "invalid_input", "validation"),
    (EmptyInputs("messages[1].content: empty"), 400, "invalid_request_error", "messages[1].content", "empty_inputs", "validation"),
    (InvalidInput("body: got an array"), 400, "invalid_request_error", None, "invalid_input", "validation"),
    (PromptTooLong("prompt: too long"), 400, "invalid_request_error", "prompt", "context_length_exceeded", "validation"),
    (UnknownModel("model: no such model here"), 404, "invalid_request_error", "model", "unknown_model", None),
    (Unauthorized("authorization: no key"), 401, "authentication_error", None, "unauthorized", None),
    (Forbidden("authorization: too small"), 403, "permission_error", None, "forbidden", None),
    (RateLimited("key: too often"), 429, "rate_limit_error", None, "rate_limited", "overloaded"),
    (NonFinite("request: not finite"), 500, "server_error", None, "non_finite", "generation"),
    (NotReady("server: loading"), 503, "server_error", None, "not_ready", "generation"),
    (EngineFailed("engine: it died"), 503, "server_error", None, "engine_failed", "incomplete_generation"),
    (DeadlineExceeded("request: late"), 503, "server_error", None, "deadline_exceeded", "incomplete_generation"),
    (MeraError(), 500, "server_error", None, "internal_error", "generation"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "status", "kind", "param", "code", "native"), ALL, ids=lambda value: None)
def test_both_forms(error: MeraError, status: int, kind: str, param: str | None, code: str, native: str | None) -> None:
    told = str(error) or error.code
    assert body_of(error, "/generate") == {"error": {"code": error.code, "message": told}, "error_type": native}
    assert body_of(error, "/v1/completions") == {"error": {"message": told, "type": kind, "param": param, "code": code}}
    assert (status_of(error, "/generate"), status_of(error, "/v1/completions")) == (error.status, status)
    ErrorReply.model_validate(body_of(error, "/"))
    OpenAIErrorReply.model_validate(body_of(error, "/v1/models"))


def test_events_begin_as_each_clients_do() -> None:
    assert event_of(EngineFailed("x"), "/generate_stream").startswith(b'data:{"error":{"code":"engine_failed"')
    assert event_of(EngineFailed("x"), "/v1/completions").startswith(b'data: {"error":{"message":"x"')
    assert event_of(EngineFailed("x"), "/v1/completions").endswith(b"}\n\n")


def test_only_what_lies_under_v1_is_openais() -> None:
    assert [is_openai(path) for path in ("/v1", "/v1/models", "/v1x", "/", "/generate")] == [True, True, *[False] * 3]
