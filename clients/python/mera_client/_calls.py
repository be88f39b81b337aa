"""Each call as a value: the request to send and how to read its answer. `Client` and `AsyncClient` only send it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from mera_client._decode import decode
from mera_client._errors import BadResponse, InvalidInput, error_of
from mera_client._events import EventReader
from mera_client._options import Timeout
from mera_client._types import (
    Classification,
    Generation,
    Inputs,
    MeraDetails,
    ProbeInfo,
    Steering,
    TaskInfo,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. read: turns the answer, or the error it holds, into what the caller gets.

    timeout: None for the client's own. again: whether the client's retries apply.
    """

    path: str
    read: Callable[[httpx.Response], T]
    body: Mapping[str, Any] | None = None
    timeout: Timeout = None
    again: bool = True

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        timeout = httpx.USE_CLIENT_DEFAULT if self.timeout is None else self.timeout
        if self.body is None:
            return http.build_request("GET", self.path, timeout=timeout)
        try:
            content = json.dumps(self.body, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the request cannot be written as JSON: {error}") from error
        kind = {"content-type": "application/json"}
        return http.build_request("POST", self.path, content=content, headers=kind, timeout=timeout)


def generate(
    inputs: Inputs,
    *,
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    stop: str | Sequence[str],
    seed: int | None,
    return_full_text: bool,
    details: bool,
    steering: Steering | Mapping[str, Any] | None,
    mera_details: MeraDetails,
    timeout: Timeout,
) -> Call[Generation]:
    """POST /generate. What is None is left out, so that the server's default holds."""
    parameters = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "stop": ([stop] if isinstance(stop, str) else list(stop)) or None,
        "seed": seed,
        "return_full_text": return_full_text or None,
        "details": details or None,
    }
    body = {
        "inputs": inputs if isinstance(inputs, str) else dict(inputs),
        "parameters": {name: value for name, value in parameters.items() if value is not None},
        "details": mera_details,
        **_steering(steering),
    }
    return Call("/generate", lambda response: decode(Generation, _json(response)), body, timeout)


def streamed(call: Call[Generation]) -> Call[EventReader]:
    """The same request, answered token by token."""
    return Call(call.path, EventReader, {**(call.body or {}), "stream": True}, call.timeout)


def classify(
    task: str, inputs: Sequence[Inputs], *, steering: Steering | Mapping[str, Any] | None, timeout: Timeout
) -> Call[Classification]:
    """POST /classify."""
    if isinstance(inputs, str | Mapping):
        raise InvalidInput("inputs: one input where a list belongs; give [input]")
    given = [value if isinstance(value, str) else dict(value) for value in inputs]

    def read(response: httpx.Response) -> Classification:
        answer = decode(Classification, _json(response))
        if len(answer.results) != len(given):
            raise BadResponse(f"answer.results: {len(answer.results)} of them for {len(given)} inputs")
        return answer

    return Call("/classify", read, {"task": task, "inputs": given, **_steering(steering)}, timeout)


def tasks() -> Call[tuple[TaskInfo, ...]]:
    return Call("/tasks", lambda response: tuple(decode(TaskInfo, item) for item in _items(response, "tasks")))


def probes() -> Call[tuple[ProbeInfo, ...]]:
    return Call("/probes", lambda response: tuple(_probe(item) for item in _items(response, "probes")))


def probe(digest: str) -> Call[ProbeInfo]:
    return Call(f"/probes/{quote(digest, safe='')}", lambda response: _probe(_json(response)))


def info() -> Call[Mapping[str, Any]]:
    return Call("/info", _json)


def live() -> Call[bool]:
    return Call("/health/live", _healthy, again=False)  # "not now" is the answer


def ready() -> Call[bool]:
    return Call("/health/ready", _healthy, again=False)


def _steering(steering: Steering | Mapping[str, Any] | None) -> dict[str, Any]:
    if steering is None:
        return {}
    return {"steering": steering.to_json() if isinstance(steering, Steering) else dict(steering)}


def _json(response: httpx.Response) -> dict[str, Any]:
    if not response.is_success:
        raise error_of(response)
    try:
        value = response.json()
    except ValueError as error:
        raise BadResponse(f"{response.request.url} answered something that is not JSON; check base_url") from error
    return decode(dict, value)


def _items(response: httpx.Response, name: str) -> list[Any]:
    return decode(list, _json(response).get(name), f"answer.{name}")


def _probe(value: dict[str, Any]) -> ProbeInfo:
    return decode(ProbeInfo, {**decode(dict, value), "raw": value})


def _healthy(response: httpx.Response) -> bool:
    if response.is_success or response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return response.is_success
    raise error_of(response)
