"""Loading, failing, stopping, callers who leave, a queue that is full."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.loading import Serving, load
from mera_server.settings import Settings

from merasteer.engine import Engine
from merasteer.errors import InvalidInput

LONG = {"inputs": "Message:", "parameters": {"max_new_tokens": 900}}


class Still:
    """A `Serving` whose engine can be stopped without stopping the shared one."""

    def __init__(self, serving: Serving) -> None:
        self.stopped = False
        self.catalog, self.special = serving.catalog, serving.special
        self.engine: Any = self
        self.loaded, self.failure = serving.engine.loaded, None
        self.stats = serving.engine.stats

    def stop(self) -> None:
        self.stopped = True


def over(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def until_ready(client: httpx.AsyncClient) -> None:
    for _ in range(500):
        if (await client.get("/health/ready")).status_code == 200:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("never ready")


async def test_live_at_once_ready_when_loaded_stopped_at_the_end(
    settings: Settings, serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    loaded, still = threading.Event(), Still(serving)

    def loader(_: Settings) -> Any:
        loaded.wait(20)
        return still

    app = create_app(settings, loader=loader)
    async with app.router.lifespan_context(app), over(app) as client:
        assert (await client.get("/health/live")).status_code == 200
        for path, method in (("/health/ready", "GET"), ("/generate", "POST"), ("/tasks", "GET"), ("/info", "GET")):
            response = await client.request(method, path, json={"inputs": "x"} if method == "POST" else None)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
            assert response.headers["retry-after"]
        assert (await client.get("/metrics")).status_code == 200
        loaded.set()
        await until_ready(client)
        assert not still.stopped
        still.failure = RuntimeError("the loop died")  # type: ignore[assignment]
        for _ in range(3):
            response = await client.get("/health/ready")
            assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_failed")
        assert caplog.text.count("the loop died") == 1
        assert (await client.get("/health/live")).status_code == 200
    assert still.stopped


async def test_a_failed_load_is_told(settings: Settings) -> None:
    failures: list[BaseException] = []
    told = threading.Event()

    def loader(_: Settings) -> Any:
        raise InvalidInput("model: wrong")

    def failed(error: BaseException) -> None:
        failures.append(error)
        told.set()

    app = create_app(settings, loader=loader, on_failure=failed)
    async with app.router.lifespan_context(app), over(app) as client:
        assert await asyncio.to_thread(told.wait, 10)
        assert (await client.get("/health/ready")).json()["error"]["code"] == "engine_failed"
    assert isinstance(failures[0], InvalidInput)


async def until_idle(engine: Engine) -> None:
    for _ in range(500):
        if engine.stats().running == engine.stats().waiting == 0:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("still running")


async def test_a_caller_who_leaves_takes_the_request_along(app: FastAPI, serving: Serving) -> None:
    left, sent = asyncio.Event(), []
    raw = json.dumps(LONG).encode()
    incoming = iter([{"type": "http.request", "body": raw, "more_body": False}])

    async def receive() -> dict[str, Any]:
        message = next(incoming, None)
        if message is None:
            await left.wait()
            return {"type": "http.disconnect"}
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/generate",
        "raw_path": b"/generate", "query_string": b"", "headers": [], "scheme": "http", "server": ("test", 80),
    }  # fmt: skip
    task = asyncio.create_task(app(scope, receive, send))  # type: ignore[arg-type]
    while serving.engine.stats().running == 0 and not task.done():
        await asyncio.sleep(0.005)
    left.set()
    await asyncio.wait_for(task, 10)
    await until_idle(serving.engine)
    text = app.state.runtime.metrics.text().decode()
    assert 'mera_requests_total{route="/generate",status="499"} 1.0' in text
    assert 'mera_tokens_total{kind="generated"}' not in text


@pytest.fixture
def narrow(settings: Settings) -> Iterator[Serving]:
    """One request at a time and one behind it, on a model of its own."""
    found = load(settings.model_copy(update={"max_requests": 1, "max_waiting": 1, "cache_tokens": 2048}))
    yield found
    found.engine.stop()


async def test_a_full_queue_is_429_and_later_requests_are_served(settings: Settings, narrow: Serving) -> None:
    app = create_app(settings, loader=lambda _: narrow)
    app.state.runtime.start()
    body = {"inputs": "Message:", "parameters": {"max_new_tokens": 150}}
    async with over(app) as client:
        await until_ready(client)
        responses = await asyncio.gather(*(client.post("/generate", json=body) for _ in range(5)))
        assert sorted(response.status_code for response in responses) == [200, 200, 429, 429, 429]
        refused = next(response for response in responses if response.status_code == 429)
        assert refused.json()["error"]["code"] == "overloaded"
        assert refused.headers["retry-after"]
        assert (await client.post("/generate", json=body)).status_code == 200
