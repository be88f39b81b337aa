"""Everything that the client raises on purpose. `code` is the one in the server's answer and in its metrics.

MeraError                 500 internal_error     also any code that this version of the client does not know
├── InvalidInput          422 invalid_input      also raised before sending, for what cannot be written as JSON
│   ├── UnknownField      422 unknown_field
│   ├── EmptyInputs       422 empty_inputs
│   ├── PromptTooLong     422 prompt_too_long
│   ├── AlphaRequired     422 alpha_required
│   ├── Unsupported       422 unsupported
│   ├── BadTask           422 bad_task
│   ├── BadSplits         422 bad_splits
│   ├── BadArtifact       422 bad_artifact
│   └── UnsupportedModel  422 unsupported_model
├── NotJson               400 not_json
├── NoChatTemplate        400 no_chat_template
├── Unauthorized          401 unauthorized
├── Forbidden             403 forbidden
├── NotFound              404 not_found
│   ├── UnknownTask       404 unknown_task
│   ├── UnknownProbe      404 unknown_probe
│   └── UnknownModel      404 unknown_model
├── MethodNotAllowed      405 method_not_allowed
├── TooLarge              413 too_large
├── Overloaded            429 overloaded
│   └── RateLimited       429 rate_limited
├── NotReady              503 not_ready
├── DeadlineExceeded      503 deadline_exceeded  not sent again by the client: it would take as long
├── NonFinite             500 non_finite
├── EngineFailed          503 engine_failed
├── SeamMissing           503 seam_missing
├── Cancelled             499 cancelled
│                                                the client's own, never sent by the server:
├── BadResponse             – bad_response       an answer came, but not one of mera-server's
└── TransportFailed         – transport_failed   no answer came
    ├── ConnectionFailed    – connection_failed
    └── TimedOut            – timed_out
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx


class MeraError(Exception):
    """What went wrong, in one line that names value and remedy.

    code: stable and machine-readable. status: of the HTTP answer, None without one that can be read. request_id: the
    server's `X-Request-Id`, to be looked up in its logs.
    """

    code: str = "internal_error"
    status: int | None = 500

    def __init__(
        self, message: str, *, code: str | None = None, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.status = status or type(self).status
        self.request_id = request_id


class InvalidInput(MeraError):
    code, status = "invalid_input", 422


class UnknownField(InvalidInput):
    code = "unknown_field"


class EmptyInputs(InvalidInput):
    code = "empty_inputs"


class PromptTooLong(InvalidInput):
    code = "prompt_too_long"


class AlphaRequired(InvalidInput):
    code = "alpha_required"


class Unsupported(InvalidInput):
    code = "unsupported"


class BadTask(InvalidInput):
    code = "bad_task"


class BadSplits(InvalidInput):
    code = "bad_splits"


class BadArtifact(InvalidInput):
    code = "bad_artifact"


class UnsupportedModel(InvalidInput):
    code = "unsupported_model"


class NotJson(MeraError):
    code, status = "not_json", 400


class NoChatTemplate(MeraError):
    code, status = "no_chat_template", 400


class Unauthorized(MeraError):
    code, status = "unauthorized", 401


class Forbidden(MeraError):
    code, status = "forbidden", 403


class NotFound(MeraError):
    code, status = "not_found", 404


class UnknownTask(NotFound):
    code = "unknown_task"


class UnknownProbe(NotFound):
    code = "unknown_probe"


class UnknownModel(NotFound):
    code = "unknown_model"


class MethodNotAllowed(MeraError):
    code, status = "method_not_allowed", 405


class TooLarge(MeraError):
    code, status = "too_large", 413


class Overloaded(MeraError):
    code, status = "overloaded", 429


class RateLimited(Overloaded):
    code = "rate_limited"


class NotReady(MeraError):
    code, status = "not_ready", 503


class DeadlineExceeded(MeraError):
    code, status = "deadline_exceeded", 503


class NonFinite(MeraError):
    code, status = "non_finite", 500


class EngineFailed(MeraError):
    code, status = "engine_failed", 503


class SeamMissing(MeraError):
    code, status = "seam_missing", 503


class Cancelled(MeraError):
    code, status = "cancelled", 499


class BadResponse(MeraError):
    code, status = "bad_response", None


class TransportFailed(MeraError):
    code, status = "transport_failed", None


class ConnectionFailed(TransportFailed):
    code = "connection_failed"


class TimedOut(TransportFailed):
    code = "timed_out"


def _tree(root: type[MeraError]) -> Iterator[type[MeraError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


SERVER_ERRORS: Mapping[str, type[MeraError]] = {  # code -> class, of the codes that a server sends
    kind.code: kind for kind in _tree(MeraError) if kind.status is not None
}


def error_of(response: httpx.Response) -> MeraError:
    """The exception for an answer that is not a success."""
    request_id = response.headers.get("x-request-id")
    try:
        return error_in(response.json(), request_id, response.status_code)
    except (ValueError, KeyError, TypeError, IndexError):
        text = f"{response.request.url} answered {response.status_code} without an error of mera-server; check base_url"
        return BadResponse(text, status=response.status_code, request_id=request_id)


def error_in(body: Any, request_id: str | None, status: int | None = None) -> MeraError:
    """The exception for an error's body. status: None takes the one that belongs to the code."""
    code, message = str(body["error"]["code"]), str(body["error"]["message"])
    return SERVER_ERRORS.get(code, MeraError)(message, code=code, status=status, request_id=request_id)


@contextmanager
def httpx_errors_mapped() -> Iterator[None]:
    """Inside it, what httpx raises becomes one of ours, with the foreign error as its cause."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise TimedOut(f"no answer in time ({type(error).__name__}); give the client a longer timeout") from error
    except httpx.TransportError as error:
        raise ConnectionFailed(f"{error or type(error).__name__}; check base_url and that the server runs") from error
    except httpx.HTTPError as error:
        raise BadResponse(f"the answer cannot be read: {error or type(error).__name__}") from error
    except httpx.InvalidURL as error:
        raise InvalidInput(f"base_url: {error}; give one such as http://127.0.0.1:8000") from error
