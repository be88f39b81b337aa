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
from mera_client._types import Generation, Inputs, MeraDetails, ProbeInfo, Steering, TaskInfo

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. read: turns the answer, or the error it holds, into what the caller gets."""

    path: str
    read: Callable[[httpx.Response], T]
    body: Mapping[str, Any] | None = None

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        if self.body is None:
            return http.build_request("GET", self.path)
        try:
            content = json.dumps(self.body, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the request cannot be written as JSON: {error}") from error
        return http.build_request("POST", self.path, content=content, headers={"content-type": "application/json"})


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
    body: dict[str, Any] = {
        "inputs": inputs if isinstance(inputs, str) else dict(inputs),
        "parameters": {name: value for name, value in parameters.items() if value is not None},
        "details": mera_details,
    }
    if steering is not None:
        body["steering"] = steering.to_json() if isinstance(steering, Steering) else dict(steering)
    return Call("/generate", lambda response: decode(Generation, _json(response)), body)


def tasks() -> Call[tuple[TaskInfo, ...]]:
    return Call("/tasks", lambda response: tuple(decode(TaskInfo, item) for item in _items(response, "tasks")))


def probes() -> Call[tuple[ProbeInfo, ...]]:
    return Call("/probes", lambda response: tuple(_probe(item) for item in _items(response, "probes")))


def probe(digest: str) -> Call[ProbeInfo]:
    return Call(f"/probes/{quote(digest, safe='')}", lambda response: _probe(_json(response)))


def info() -> Call[Mapping[str, Any]]:
    return Call("/info", _json)


def live() -> Call[bool]:
    return Call("/health/live", _healthy)


def ready() -> Call[bool]:
    return Call("/health/ready", _healthy)


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
