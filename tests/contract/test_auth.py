"""Every route with every scope, with no key and with wrong ones; what a refusal looks like; keys that come and go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.cli import main
from mera_server.keys import SCOPES
from mera_server.loading import Serving
from mera_server.settings import Settings
from starlette.routing import Route

Ready = Callable[[FastAPI], FastAPI]

# What each route needs, by hand: the server's own rule is what is tested.
TABLE: dict[tuple[str, str], str | None] = {
    ("GET", "/health"): None,
    ("GET", "/health/live"): None,
    ("GET", "/health/ready"): None,
    ("GET", "/"): None,
    ("GET", "/openapi.json"): "read",
    ("GET", "/info"): "read",
    ("GET", "/version"): "read",
    ("POST", "/tokenize"): "read",
    ("POST", "/detokenize"): "read",
    ("GET", "/metrics"): "read",
    ("GET", "/tasks"): "read",
    ("GET", "/tasks/forms"): "read",
    ("GET", "/probes"): "read",
    ("GET", "/probes/{digest}"): "read",
    ("GET", "/v1/models"): "read",
    ("GET", "/v1/models/{name:path}"): "read",
    ("POST", "/generate"): "generate",
    ("POST", "/generate_stream"): "generate",
    ("POST", "/"): "generate",
    ("POST", "/classify"): "generate",
    ("POST", "/classify/{task}"): "generate",
    ("POST", "/v1/completions"): "generate",
    ("POST", "/v1/chat/completions"): "generate",
    ("POST", "/probes/reload"): "admin",
}
INFERENCE = [key for key, scope in TABLE.items() if scope == "generate"]


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def keys(keys_file: Path) -> dict[str, str]:
    """A key of each scope."""
    found = {}
    for scope in SCOPES:
        with pytest.MonkeyPatch.context() as patch:
            told: list[str] = []
            patch.setattr("mera_server.commands.keys.typer.echo", told.append)
            assert main(["keys", "add", f"a-{scope}", "--scope", scope, "--keys-file", str(keys_file)]) == 0
        found[scope] = told[0]
    return found


@pytest.fixture
def guarded(settings: Settings, serving: Serving, keys: dict[str, str], keys_file: Path, ready_app: Ready) -> FastAPI:
    return ready_app(create_app(settings.model_copy(update={"keys_file": keys_file}), loader=lambda _: serving))


@pytest.fixture
async def caller(guarded: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url="http://test") as found:
        yield found


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def registered(routes: Sequence[Any]) -> set[tuple[str, str]]:
    """(method, path) of every route."""
    found = set()
    for route in routes:
        if isinstance(route, Route):
            found |= {(method, route.path) for method in (route.methods or ()) if method != "HEAD"}
        else:
            found |= registered(route.original_router.routes)
    return found


def test_the_table_has_every_route(guarded: FastAPI) -> None:
    assert registered(guarded.routes) == TABLE.keys()


@pytest.mark.parametrize(("method", "path"), TABLE)
async def test_every_route_with_every_scope(
    caller: httpx.AsyncClient, guarded: FastAPI, keys: dict[str, str], method: str, path: str
) -> None:
    needed = TABLE[method, path]
    wrong = keys["admin"][:-1] + ("A" if keys["admin"][-1] != "A" else "B")
    given: dict[str, str | None] = {"none": None, "wrong": wrong, **keys}
    for name, key in given.items():
        place = path.replace("{digest}", "0123").replace("{name:path}", "absent")
        response = await caller.request(method, place, headers=bearer(key) if key else {}, content=b"{")
        if needed is None:
            expected: set[int] = {200, 404, 405}
        elif name in ("none", "wrong"):
            expected = {401}
        elif SCOPES.index(name) < SCOPES.index(needed):  # type: ignore[arg-type]
            expected = {403}
        else:
            expected = {400, 200, 404}  # the body is not JSON: who may ask is told so
        assert response.status_code in expected, (name, response.status_code, response.text)
        if response.status_code in (401, 403):
            code = "unauthorized" if response.status_code == 401 else "forbidden"
            assert response.json()["error"]["code"] == code
            assert response.headers["x-request-id"]
            assert ("www-authenticate" in response.headers) == (code == "unauthorized")
            assert key is None or key not in response.text


async def test_what_is_not_there_is_not_told_to_strangers(caller: httpx.AsyncClient, keys: dict[str, str]) -> None:
    for method, path in (("GET", "/absent"), ("DELETE", "/generate"), ("POST", "/absent"), ("GET", "/generate")):
        assert (await caller.request(method, path)).status_code == 401
    assert (await caller.get("/absent", headers=bearer(keys["read"]))).status_code == 404
    assert (await caller.get("/generate", headers=bearer(keys["read"]))).status_code == 405
    assert (await caller.delete("/generate", headers=bearer(keys["generate"]))).status_code == 403
    assert (await caller.delete("/generate", headers=bearer(keys["admin"]))).status_code == 405


async def test_the_header_has_one_form(caller: httpx.AsyncClient, keys: dict[str, str]) -> None:
    key = keys["read"]
    for good in (f"Bearer {key}", f"bearer {key}", f"BEARER   {key}"):
        assert (await caller.get("/tasks", headers={"Authorization": good})).status_code == 200
    bad = (key, f"Basic {key}", f"Bearer{key}", f"Bearer {key} {key}", "Bearer ", "Bearer \u00e9", f"Bearer {key},")
    for value in bad:
        headers = {"Authorization": value.encode("latin-1")}
        assert (await caller.get("/tasks", headers=headers)).status_code == 401, value
    twice = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")]
    assert (await caller.get("/tasks", headers=twice)).status_code == 401
    assert (await caller.get("/tasks", params={"api_key": key})).status_code == 401


async def test_a_stranger_is_refused_before_the_body_is_read(caller: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    with_length = await caller.post("/generate", content=b"x" * 30_000)
    assert with_length.status_code == 401
    assert (await caller.post("/generate", content=endless())).status_code == 401


async def test_refusals_are_counted_and_the_log_knows_the_key_by_name(
    caller: httpx.AsyncClient, keys: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "mera.access"):
        await caller.post("/generate", json={"inputs": "x"})
        await caller.post("/generate", json={"inputs": "x"}, headers=bearer(keys["read"]))
        body = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
        await caller.post("/generate", json=body, headers=bearer(keys["generate"]))
        text = (await caller.get("/metrics", headers=bearer(keys["read"]))).text
    for status in (401, 403, 200):
        assert f'mera_requests_total{{route="/generate",status="{status}"}} 1.0' in text
    lines = [record.getMessage() for record in caplog.records if record.name == "mera.access"]
    assert [line.split("key=")[1] for line in lines] == ["-", "a-read", "a-generate", "a-read"]
    assert not any(key in caplog.text for key in keys.values())


async def test_keys_come_and_go_without_a_restart(
    caller: httpx.AsyncClient, guarded: FastAPI, keys_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--keys-file", str(keys_file)]
    assert main(["keys", "add", "guest", "--scope", "read", *arguments]) == 0
    guest = bearer(capsys.readouterr().out.strip())
    assert (await caller.get("/tasks", headers=guest)).status_code == 401
    guarded.state.runtime.keys.refresh()
    assert (await caller.get("/tasks", headers=guest)).status_code == 200
    assert main(["keys", "remove", "guest", *arguments]) == 0
    guarded.state.runtime.keys.refresh()
    assert (await caller.get("/tasks", headers=guest)).status_code == 401


async def test_without_keys_nobody_is_asked(client: httpx.AsyncClient) -> None:
    assert (await client.get("/tasks")).status_code == 200
    assert (await client.get("/tasks", headers=bearer("anything"))).status_code == 200


async def test_origins_are_refused_unless_named(settings: Settings, serving: Serving, ready_app: Ready) -> None:
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    answers: list[list[Any]] = []
    codes: list[str] = []
    for origins in ((), ("https://a.example",), ("https://b.example",)):
        app = ready_app(create_app(settings.model_copy(update={"cors_origin": origins}), loader=lambda _: serving))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            asked = await client.options("/generate", headers=preflight)
            refused = await client.post("/generate", content=b"{", headers={"Origin": "https://a.example"})
            allowed = [response.headers.get("access-control-allow-origin") for response in (asked, refused)]
            answers.append([asked.status_code == 200, *allowed])
            codes.append(refused.json()["error"]["code"])
    a = "https://a.example"
    assert answers == [[False, None, None], [True, a, a], [False, None, None]]
    assert codes == ["forbidden", "not_json", "forbidden"]


async def test_a_preflight_needs_no_key(
    settings: Settings, serving: Serving, keys: dict[str, str], keys_file: Path, ready_app: Ready
) -> None:
    given = {"cors_origin": ("https://a.example",), "keys_file": keys_file}
    app = ready_app(create_app(settings.model_copy(update=given), loader=lambda _: serving))
    headers = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang, x-stainless-retry-count",
    }
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.options("/generate", headers=headers)).status_code == 200
        refused = await client.post("/generate", content=b"{", headers={"Origin": "https://a.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
