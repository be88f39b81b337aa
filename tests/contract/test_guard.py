"""A server without keys on loopback, and a browser that a page of another site makes ask it."""

from __future__ import annotations

import httpx
import pytest

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("kind", ["text/plain", "application/json", None])
@pytest.mark.parametrize("path", ["/probes/reload", "/generate", "/v1/completions", "/absent"])
async def test_a_foreign_page_changes_and_generates_nothing(
    client: httpx.AsyncClient, path: str, kind: str | None
) -> None:
    headers = {"origin": "https://evil.example"} | ({} if kind is None else {"content-type": kind})
    response = await client.post(path, content=b"{}", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert "evil" not in response.text
    assert response.headers["x-request-id"]


async def test_plain_text_reloads_nothing(client: httpx.AsyncClient) -> None:
    response = await client.post("/probes/reload", content=b"{}", headers={"content-type": "text/plain"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")


async def test_a_name_that_was_pointed_here_is_refused(client: httpx.AsyncClient) -> None:
    for method, path in (("GET", "/tasks"), ("POST", "/generate"), ("GET", "/"), ("GET", "/health/live")):
        response = await client.request(method, path, headers={"host": "evil.example.com:8000"})
        assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
        assert "evil" not in response.text
    for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000", "mera"):
        assert (await client.get("/tasks", headers={"host": host})).status_code == 200


async def test_our_own_page_may_ask(client: httpx.AsyncClient) -> None:
    body = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
    headers = {"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"}
    assert (await client.post("/generate", json=body, headers=headers)).status_code == 200


async def test_refusals_are_counted_and_say_what_to_do(client: httpx.AsyncClient) -> None:
    refused = await client.post("/generate", json={"inputs": "x"}, headers={"origin": "null"})
    assert "--cors-origin" in refused.json()["error"]["message"]
    text = (await client.get("/metrics")).text
    assert 'mera_requests_total{route="/generate",status="403"} 1.0' in text
