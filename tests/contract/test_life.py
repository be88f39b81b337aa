"""Loading, failing, stopping, callers who leave, a queue that is full."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.commands import serve
from mera_server.loading import Serving, load
from mera_server.settings import Settings

from merasteer.engine import Engine
from merasteer.errors import InvalidInput
from merasteer.types import GenerationRequest

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


async def test_who_is_refused_for_want_of_room_is_told_before_anything_is_read_and_pays_for_one(
    settings: Settings, narrow: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"rate_limit": 0.01, "rate_burst": 4}
    app = create_app(settings.model_copy(update=given), loader=lambda _: narrow)
    app.state.runtime.start()
    encode, few = narrow.engine.encode, {"inputs": "Message:", "parameters": {"max_new_tokens": 1}}
    async with over(app) as client:
        await until_ready(client)
        with narrow.engine.held():
            waiting = [narrow.engine.submit(GenerationRequest(encode("Message:"), 40)) for _ in range(2)]
            monkeypatch.setattr(narrow.engine, "_next", lambda: None)  # they go on waiting
        monkeypatch.setattr(narrow.engine, "encode", lambda _: pytest.fail("a prompt was tokenized"))
        many = {"task": "demo_desk_a", "inputs": ["x"] * 20}
        for path, content in (("/classify", json.dumps(many)), ("/generate", "{"), ("/v1/completions", "not read")):
            response = await client.post(path, content=content)
            assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
            assert response.headers.get_list("retry-after") == ["1"]
        monkeypatch.undo()
        for future in waiting:
            future.cancel()
        await until_idle(narrow.engine)
        assert (await client.post("/generate", json=few)).status_code == 200
        refused = await client.post("/generate", json=few)
        assert refused.json()["error"]["code"] == "rate_limited"
        assert 95 <= int(refused.headers["retry-after"]) <= 100  # 4 of 4 were spent, and no more
        text = app.state.runtime.metrics.text().decode()
        assert 'mera_requests_total{route="/classify",status="429"} 1.0' in text


async def test_a_batch_larger_than_the_queue_is_served(settings: Settings, narrow: Serving) -> None:
    app = create_app(settings, loader=lambda _: narrow)
    app.state.runtime.start()
    async with over(app) as client:
        await until_ready(client)
        response = await client.post("/classify", json={"task": "demo_desk_a", "inputs": ["x"] * 20})
        assert response.status_code == 200, response.text
        assert len(response.json()["results"]) == 20


def test_an_answer_in_two_packets_does_not_wait_for_the_first_to_be_acknowledged() -> None:
    with serve._listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
