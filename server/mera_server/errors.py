"""Every failure as an answer (its body: `told.py`), and every foreign error mapped to ours.

pydantic.ValidationError      NotJson 400, UnknownField, Unsupported or InvalidInput 422; never with the input in it
starlette HTTPException       NotFound 404, MethodNotAllowed 405, TooLarge 413, else by status
anything else                 internal_error 500; the log line holds the request id, the answer's header too
"""

from __future__ import annotations

import json
import logging
import re
import types
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from mera_server.neutral import of_body
from mera_server.told import body_of, status_of
from merasteer.errors import (
    InvalidInput,
    MeraError,
    MethodNotAllowed,
    NotFound,
    NotJson,
    RateLimited,
    TooLarge,
    UnknownField,
    Unsupported,
)

__all__ = [
    "describe",
    "error_response",
    "foreign",
    "on_http_exception",
    "on_mera_error",
    "parse",
]

Body = TypeVar("Body", bound=BaseModel)

log = logging.getLogger("mera.errors")
_JSON_NAMES = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    dict: "an object",
    list: "an array",
}
_NAMEABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_HEADERS: dict[str, dict[str, str]] = {
    "overloaded": {"Retry-After": "1"},
    "not_ready": {"Retry-After": "2"},
    "unauthorized": {"WWW-Authenticate": 'Bearer realm="mera"'},
}


def error_response(error: MeraError, path: str = "/", headers: dict[str, str] | None = None) -> Response:
    """The answer to a request on `path` that ends with `error`."""
    own = {"Retry-After": str(error.retry_after)} if isinstance(error, RateLimited) else _HEADERS.get(error.code, {})
    return JSONResponse(body_of(error, path), status_code=status_of(error, path), headers=own | (headers or {}))


async def on_mera_error(request: Request, error: Exception) -> Response:
    """Handler of our own errors."""
    known = foreign(error)
    if known.status == 500:  # a 503 is told once, where it begins
        log.error("request_id=%s code=%s %s", json.dumps(getattr(request.state, "request_id", "")), known.code, known)
    return error_response(known, request.scope["path"])


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Handler of the framework's errors: unknown routes, wrong methods."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        error = HTTPException(405, headers={"Allow": _methods(request)})
    return error_response(foreign(error), request.scope["path"], dict(getattr(error, "headers", None) or {}))


def _methods(request: Request) -> str:
    """Those that the path takes. The framework itself names only those of the first router that knows the path."""
    routes, scope = request.app.routes, request.scope
    taken = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
        if any(route.matches({**scope, "method": method})[0] == Match.FULL for route in routes)
    ]
    return ", ".join(["GET", "HEAD", *taken[1:]] if taken[:1] == ["GET"] else taken)


def foreign(error: BaseException) -> MeraError:
    """The error of ours that stands for `error`; MeraError itself (500 internal_error) for what nobody expected."""
    if isinstance(error, MeraError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            return MethodNotAllowed(f"method: this route does not take it; use {allowed}")
        if error.status_code == 413:
            return TooLarge("body: larger than the server takes; send less")
        if error.status_code == 404:
            return NotFound("path: no such route; GET /openapi.json lists them all")
        if error.status_code < 500:
            return InvalidInput("request: the server could not read it; see GET /openapi.json")
    return MeraError("internal error: the server's log has it under the X-Request-Id of this answer; report it")


def parse(model: type[Body], raw: bytes) -> Body:
    """The body as `model`. Raises NotJson, UnknownField, Unsupported or InvalidInput, naming the field, never its value."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise describe(error, model) from None


def describe(error: ValidationError, model: type[BaseModel]) -> MeraError:
    """The first problem as an error of ours: field, what is wrong with it, what it takes."""
    first = error.errors(include_url=False, include_context=True)[0]
    kind = first["type"]
    if kind == "json_invalid":
        return NotJson('body: not JSON in UTF-8; send an object such as {"inputs": "..."}')
    path, takes, known = _locate(model, first["loc"])
    if kind == "none_required" and str(first["loc"][-1]) not in known:
        last = str(first["loc"][-1])
        name = ".".join([*path, last]) if _NAMEABLE.fullmatch(last) else ".".join([*path, "(a field)"])
        return UnknownField(f"{name}: unknown field; known fields: {', '.join(sorted(known))}")
    name = ".".join(path) or "body"
    if kind == "unsupported":
        why = f" ({told})" if (told := first.get("ctx", {}).get("why")) else ""
        return Unsupported(f"{name}: got {_kind_of(first['input'])} that is not implemented here{why}; give {takes}")
    return InvalidInput(f"{name}: {_problem(kind, first['input'])}; give {takes}")


def _problem(kind: str, value: object) -> str:
    """What is wrong, told by the kind of the value alone."""
    if kind == "missing":
        return "missing"
    if kind == "finite_number":
        return "got a number that is not finite"
    if kind in _OUT_OF_RANGE:
        return f"got {_kind_of(value)} that is out of range"
    if kind in {
        "literal_error",
        "string_pattern_mismatch",
        "string_too_long",
        "string_too_short",
        "too_long",
        "too_short",
    }:
        return f"got {_kind_of(value)} that is not allowed"
    return f"got {_kind_of(value)}"


def _kind_of(value: object) -> str:
    return "null" if value is None else _JSON_NAMES.get(type(value), "a value")


def _locate(model: type[BaseModel], location: tuple[Any, ...]) -> tuple[list[str], str, list[str]]:
    """The field path (union tags left out), what the last field takes, and the fields that the innermost object serves."""
    path: list[str] = []
    takes = "a JSON object"
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) and path and current is not None:
            path[-1] += f"[{part}]"  # a list of objects: which one
            continue
        if current is None or part not in current.model_fields:
            break
        field = current.model_fields[part]
        path.append(str(part))
        takes = field.description or "another value"
        current = _model_in(field.annotation)
    listed = [] if current is None else {name for row in of_body(current.__name__) for name in row.fields}
    return path, takes, [name for name in current.model_fields if name not in listed] if current else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, through `| None`, or a list of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inside = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType, list) else ()
    return next((found for option in inside if (found := _model_in(option)) is not None), None)
