"""How an error is told: on native routes in this server's form, under /v1 in OpenAI's. Pure.

native   {"error": {"code", "message"}, "error_type"}          the status of the error; error_type is what text-generation clients read
/v1      {"error": {"message", "type", "param", "code"}}       400 where native routes say 422, as OpenAI's clients expect
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from merasteer.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    InvalidInput,
    MeraError,
    NotFound,
    Overloaded,
    PromptTooLong,
)

__all__ = ["ErrorType", "OpenAIErrorType", "body_of", "event_of", "is_openai", "status_of"]

ErrorType = Literal["validation", "overloaded", "generation", "incomplete_generation"]
OpenAIErrorType = Literal[
    "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
]
_OPENAI_TYPES: dict[int, OpenAIErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_FIELD = re.compile(r"([A-Za-z_]\w*(\[\d+\])?(\.[A-Za-z_]\w*(\[\d+\])?)*): ")
_BY_STATUS = frozenset({401, 403, 404, 405})
_NO_FIELDS = frozenset({"body", "path", "request"})


def is_openai(path: str) -> bool:
    """Whether the clients of that path are OpenAI's."""
    return path == "/v1" or path.startswith("/v1/")


def status_of(error: MeraError, path: str) -> int:
    """The HTTP status that carries the error on that path."""
    return 400 if error.status == InvalidInput.status and is_openai(path) else error.status


def body_of(error: MeraError, path: str) -> dict[str, Any]:
    """The error's body: an `ErrorReply`, or an `OpenAIErrorReply`."""
    message = str(error) or error.code
    if not is_openai(path):
        return {"error": {"code": error.code, "message": message}, "error_type": _native_type(error)}
    kind = _OPENAI_TYPES.get(error.status) or ("server_error" if error.status >= 500 else "invalid_request_error")
    code = "context_length_exceeded" if isinstance(error, PromptTooLong) else error.code
    return {"error": {"message": message, "type": kind, "param": _param(error, message), "code": code}}


def event_of(error: MeraError, path: str) -> bytes:
    """The same body as a server-sent event: the last one of a stream that fails."""
    begin = b"data: " if is_openai(path) else b"data:"
    return begin + json.dumps(body_of(error, path), separators=(",", ":")).encode() + b"\n\n"


def _native_type(error: MeraError) -> ErrorType | None:
    """What text-generation-inference calls it, None where its clients go by the status: no such route, or not allowed."""
    if error.status in _BY_STATUS:
        return None
    if isinstance(error, Overloaded):
        return "overloaded"
    if isinstance(error, DeadlineExceeded | EngineFailed | Cancelled):
        return "incomplete_generation"
    return "generation" if error.status >= 500 else "validation"


def _param(error: MeraError, message: str) -> str | None:
    """The field that the error is about, where it is about one: messages begin with it."""
    found = _FIELD.match(message) if isinstance(error, InvalidInput | NotFound) else None
    return None if found is None or found[1] in _NO_FIELDS else found[1]
