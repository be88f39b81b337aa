"""A server that is one function: what it was sent is kept, what it answers is set. No sockets."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from mera_client import AsyncClient, Client

Answer = httpx.Response | Exception

GENERATION: dict[str, Any] = {
    "generated_text": " spam",
    "details": {"finish_reason": "length", "prompt_tokens": 57, "generated_tokens": 1, "seed": None},
    "mera": {
        "task": "sms_spam",
        "probe": "3fa9c0ffee12",
        "method": "mera",
        "decision": "steered",
        "reason": None,
        "alpha": 0.31,
        "predicted_error": {"before": 0.71, "after": 0.31, "layer": 5, "position": "last_prompt"},
        "steering": {
            "tokens": 1,
            "steered_tokens": 1,
            "cells": 8,
            "steered_cells": 5,
            "mean_shift": 0.04,
            "max_shift": 0.2,
        },
        "guarantee": {
            "certified": True,
            "why": None,
            "test": "mcnemar",
            "gain": 0.12,
            "lower_bound": 0.05,
            "epsilon": 0,
            "delta": 0.05,
            "n": 250,
        },
        "answer": {"label": "spam", "probabilities": {"ham": 0.08, "spam": 0.92}},
        "trace": None,
    },
}


@dataclass
class FakeServer:
    """Answers every request with `answer` (raises it, if it is an exception) and keeps the requests."""

    answer: Answer = field(default_factory=lambda: httpx.Response(200, json=GENERATION))
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return httpx.Response(self.answer.status_code, headers=self.answer.headers, content=self.answer.content)

    @property
    def body(self) -> Any:
        return json.loads(self.requests[-1].content)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, server: FakeServer) -> Callable[..., Any]:
    """`await call("generate", "hello", seed=1)` through either client: both must send and read the same."""

    async def through(method: str, *args: Any, **kwargs: Any) -> Any:
        transport = httpx.MockTransport(server)
        if request.param == "sync":
            with Client("http://mera.test", transport=transport) as client:
                return getattr(client, method)(*args, **kwargs)
        async with AsyncClient("http://mera.test", transport=transport) as client:
            result = getattr(client, method)(*args, **kwargs)
            assert inspect.isawaitable(result)
            return await result

    return through
