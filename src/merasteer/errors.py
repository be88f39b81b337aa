"""The one error vocabulary. Each error has a code that is also the HTTP body's, the client's exception's and the metric's.

MeraError                 500 internal_error     never raised as such; what is left unmapped becomes it
├── InvalidInput          422 invalid_input      a value is wrong: the message names field, value and remedy
│   ├── UnknownField      422 unknown_field
│   ├── EmptyInputs       422 empty_inputs
│   ├── PromptTooLong     422 prompt_too_long
│   ├── AlphaRequired     422 alpha_required     a policy was overridden on an artifact that has no α
│   ├── Unsupported       422 unsupported        a known field whose value this version or artifact cannot serve
│   ├── BadTask           422 bad_task           a task file or its data
│   ├── BadSplits         422 bad_splits         too few rows, or splits that are not disjoint
│   ├── BadArtifact       422 bad_artifact       an artifact that is incomplete, altered or made for another model
│   └── UnsupportedModel  422 unsupported_model  an architecture that the engine cannot batch or steer
├── NotJson               400 not_json
├── NoChatTemplate        400 no_chat_template   the model's tokenizer has none, so messages have no prompt
├── Unauthorized          401 unauthorized
├── Forbidden             403 forbidden
├── NotFound              404 not_found
│   ├── UnknownTask       404 unknown_task
│   ├── UnknownProbe      404 unknown_probe
│   └── UnknownModel      404 unknown_model      another model than the one that is served
├── MethodNotAllowed      405 method_not_allowed
├── TooLarge              413 too_large
├── Overloaded            429 overloaded         the waiting queue is full: try again later
│   └── RateLimited       429 rate_limited       a key asks for more than its share
├── NotReady              503 not_ready          model or store are still loading
├── DeadlineExceeded      503 deadline_exceeded  the request took longer than the server lets one take
├── NonFinite             500 non_finite         a number of this request is not finite: nothing is served of it
├── EngineFailed          503 engine_failed      the generation loop died or was stopped; nothing was answered
├── SeamMissing           503 seam_missing       the installed transformers lacks a part that steering stands on
└── Cancelled             499 cancelled          the caller gave the request up
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AlphaRequired",
    "BadArtifact",
    "BadSplits",
    "BadTask",
    "Cancelled",
    "DeadlineExceeded",
    "EmptyInputs",
    "EngineFailed",
    "Forbidden",
    "InvalidInput",
    "MeraError",
    "MethodNotAllowed",
    "NoChatTemplate",
    "NonFinite",
    "NotFound",
    "NotJson",
    "NotReady",
    "Overloaded",
    "PromptTooLong",
    "RateLimited",
    "SeamMissing",
    "TooLarge",
    "Unauthorized",
    "UnknownField",
    "UnknownModel",
    "UnknownProbe",
    "UnknownTask",
    "Unsupported",
    "UnsupportedModel",
]


class MeraError(Exception):
    """What a user can be told: one line, with `code` (stable, machine-readable) and the HTTP `status` that carries it."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500


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
    """retry_after: seconds until the key may ask again."""

    code = "rate_limited"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


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
