"""A server that is one function: what it was sent is kept, what it answers is set. No sockets. And the real one, on a free port."""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
from mera_client import AsyncClient, Client, Retries, TokenEvent
from mera_server.app import create_app

from merasteer import demo

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]

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


def stream_of(answer: dict[str, Any], texts: Sequence[str]) -> list[dict[str, Any]]:
    """The events of that answer: a token for each text."""
    last = {"generated_text": "".join(texts), "details": answer["details"], "mera": answer["mera"]}
    return [
        {
            "index": i + 1,
            "token": {"id": 7 + i, "text": text, "logprob": -0.5, "special": False},
            "step": {"predicted_error": {"before": 0.7, "after": 0.3}, "steered": i == 0, "trace": None},
            **(last if i == len(texts) - 1 else dict.fromkeys(last)),
        }
        for i, text in enumerate(texts)
    ]


def sse(events: Sequence[Any]) -> bytes:
    """The events as they are sent, characters outside ASCII as they are."""
    return b"".join(b"data:" + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in events)


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that comes in pieces, an exception in their place is raised there; whether it was closed."""

    def __init__(self, *pieces: bytes | Exception, status: int = 200) -> None:
        self.pieces, self.status, self.sent, self.closed = pieces, status, 0, False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            self.sent += 1
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True

    def __call__(self, _: httpx.Request) -> httpx.Response:
        headers = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "r7"}
        return httpx.Response(self.status, headers=headers, stream=self)


@dataclass
class FakeServer:
    """Answers every request with the next of `answers`, then with `answer` (raises it, if it is one), and keeps the requests."""

    answer: Answer = field(default_factory=lambda: httpx.Response(200, json=GENERATION))
    answers: list[Answer] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else self.answer
        if isinstance(answer, Exception):
            raise answer
        if not isinstance(answer, httpx.Response):
            return answer(request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    @property
    def body(self) -> Any:
        return json.loads(self.requests[-1].content)


@dataclass
class Clock:
    """Time passes only while someone sleeps; `slept` says how long each time. draw: of every jitter."""

    now: float = 1000.0
    draw: float = 1.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def retries(clock: Clock) -> Retries:
    """The default policy, on the clock that nobody waits for."""
    return Retries(clock=lambda: clock.now, draw=lambda: clock.draw)


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, server: FakeServer, clock: Clock, retries: Retries) -> Callable[..., Any]:
    """`await call("generate", "hello", seed=1)` through either client: both must send and read the same.

    Of `generate_stream` come the events, up to the first `take` of them.
    """

    async def through(
        method: str, *args: Any, take: int = 10**6, retries: Retries | None = retries, **kwargs: Any
    ) -> Any:
        given: dict[str, Any] = {"transport": httpx.MockTransport(server), "retries": retries}
        if request.param == "sync":
            with Client("http://mera.test", sleep=clock.sleep, **given) as client:
                result = getattr(client, method)(*args, **kwargs)
                return _taken(result, take) if inspect.isgenerator(result) else result
        async with AsyncClient("http://mera.test", sleep=clock.asleep, **given) as client:
            result = getattr(client, method)(*args, **kwargs)
            if inspect.isasyncgen(result):
                return await _ataken(result, take)
            assert inspect.isawaitable(result)
            return await result

    return through


def _taken(events: Any, take: int) -> list[TokenEvent]:
    found: list[TokenEvent] = []
    while len(found) < take and (event := next(events, None)) is not None:
        found.append(event)
    events.close()
    return found


async def _ataken(events: Any, take: int) -> list[TokenEvent]:
    found: list[TokenEvent] = []
    async with aclosing(events):
        while len(found) < take and (event := await anext(events, None)) is not None:
            found.append(event)
    return found


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The real server over the built-in model, on a free loopback port."""
    if not (demo.model_dir() / "config.json").is_file():
        pytest.skip("the built-in demo is not built; run `mera demo build`")
    running = uvicorn.Server(uvicorn.Config(create_app(), port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not running.started and time.monotonic() < deadline:
        time.sleep(0.05)
    base = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    with Client(base) as client:
        while not client.ready() and time.monotonic() < deadline:
            time.sleep(0.1)
    yield base
    running.should_exit = True
    thread.join(30)
