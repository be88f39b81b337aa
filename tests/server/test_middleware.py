"""Around every request: the id, the size limit, one count, and an answer to every failure."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from mera_server.metrics import Metrics
from mera_server.middleware import BodyLimit, Requests, request_id
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

SECRET = "what the caller sent"


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def breaks(_request: Request) -> Response:
    raise ZeroDivisionError("the prompt: " + SECRET)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def client(metrics: Metrics) -> AsyncIterator[httpx.AsyncClient]:
    routes = [
        Route("/generate", echo, methods=["POST"]),
        Route("/breaks", breaks),
        Route("/other", echo, methods=["POST"]),
    ]
    around = [Middleware(Requests, metrics=metrics), Middleware(BodyLimit, limit=10)]
    app = Starlette(routes=routes, middleware=around)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("given", ["a", "A-1 b", "~" * 128])
def test_good_ids_are_kept(given: str) -> None:
    assert request_id(given) == given


@pytest.mark.parametrize("given", [None, "", " ", "a\n", "é", "x" * 129, "a\x00"])
def test_bad_ids_are_replaced(given: str | None) -> None:
    assert request_id(given) != given
    assert len(request_id(given)) == 32


async def test_the_id_comes_back(client: httpx.AsyncClient) -> None:
    for path in ("/generate", "/absent", "/breaks"):
        response = await client.get(path, headers={"X-Request-Id": "mine"})
        assert response.headers.get_list("x-request-id") == ["mine"]
    assert (await client.get("/absent")).headers["x-request-id"]


async def test_an_unexpected_error_is_an_answer_and_a_log_line(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "mera.errors"):
        response = await client.get("/breaks", headers={"X-Request-Id": "mine"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert SECRET not in response.text
    assert 'request_id="mine" code=internal_error ZeroDivisionError' in caplog.text
    assert "in breaks" in caplog.text
    assert SECRET not in caplog.text


async def test_large_bodies_are_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post("/other", content=b"x" * 10)).text == "10"
    announced = await client.post("/other", content=b"x" * 11)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x"

    counted = await client.post("/other", content=chunks())
    lying = await client.post("/other", content=b"", headers={"Content-Length": "9" * 30})
    for response in (announced, counted, lying):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "too_large"


async def test_inference_routes_are_counted_once_each(client: httpx.AsyncClient, metrics: Metrics) -> None:
    await client.post("/generate", content=b"x")
    await client.post("/generate", content=b"x" * 11)
    await client.get("/generate")
    await client.post("/other", content=b"x")
    await client.get("/absent")
    lines = [line for line in metrics.text().decode().splitlines() if line.startswith("mera_requests_total")]
    assert lines == [f'mera_requests_total{{route="/generate",status="{status}"}} 1.0' for status in (200, 413, 405)]
    for outcome, count in (("answered", 1), ("refused", 2)):
        assert f'mera_request_duration_seconds_count{{outcome="{outcome}"}} {count}.0' in metrics.text().decode()


async def test_the_count_is_there_before_the_last_byte(metrics: Metrics) -> None:
    seen: list[bool] = []

    async def stream(_request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

        return StreamingResponse(parts())

    async def send(message: dict[str, object]) -> None:
        counted = 'status="200"} 1.0' in metrics.text().decode()
        seen.append(counted)
        assert counted == (message["type"] == "http.response.body" and not message.get("more_body"))

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    app = Requests(Starlette(routes=[Route("/generate", stream)]), metrics)
    scope = {"type": "http", "method": "GET", "path": "/generate", "headers": [], "query_string": b""}
    await app({**scope, "asgi": {"spec_version": "2.4"}}, receive, send)  # type: ignore[arg-type]
    assert seen[-1]


async def test_the_log_holds_no_path_of_the_caller(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mera.access"):
        await client.get("/a-secret?with=more")
        await client.post("/generate", content=b"prompt")
    assert [
        record.getMessage().split(" ms=")[0].split(" ", 1)[1]
        for record in caplog.records
        if record.name == "mera.access"
    ] == [
        "method=GET route=unknown status=404",
        "method=POST route=/generate status=200",
    ]
