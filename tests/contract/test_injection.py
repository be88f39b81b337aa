"""500 strings that try to climb out of a path or to end a header: in paths, in names, in headers, with and without keys."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.cli import main
from mera_server.loading import Serving
from mera_server.settings import Settings

Ready = Callable[[FastAPI], FastAPI]
CLIMBS = ["../", "..\\", "..%2f", "%2e%2e/", "..%252f", "..%c0%af", "....//", "..;/", "..\x00/", "\uff0e\uff0e/"]
PLACES = ["etc/passwd", "manifest.json", "demo_desk_a/latest", "probe.safetensors", "C:\\boot.ini", "proc/self/environ"]
ENDS = ["\r\n", "\n", "\r", "%0d%0a", "\x00", "\x85", "\u2028", "\x0b"]
INJECTED = ["X-Injected: 1", "Set-Cookie: a=b", "\r\n<script>alert(1)</script>", "HTTP/1.1 200 OK\r\n\r\n"]


def strings() -> list[str]:
    climbs = [climb * n + place for climb, n, place in itertools.product(CLIMBS, (1, 3, 12), PLACES)]
    rooted = [start + place for start, place in itertools.product(("/", "//", "file:///", "~/", "\\\\x\\"), PLACES)]
    heads = [f"a{end}{header}{end}" for end, header in itertools.product(ENDS, INJECTED)]
    mixed = [climb + head for climb, head in itertools.product(CLIMBS, heads)]
    found = [*climbs, *rooted, *heads, *random.Random(0).sample(mixed, 500 - len(climbs) - len(rooted) - len(heads))]
    assert len(set(found)) == 500
    return found


async def send(app: FastAPI, method: str, path: str, headers: dict[str, bytes], body: bytes = b"") -> tuple[Any, bytes]:
    """The start of the answer and its body; nothing is checked or encoded on the way in, as a careless server would let it pass."""
    sent: list[dict[str, Any]] = []
    incoming = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        return next(incoming, {"type": "http.disconnect"})

    async def answer(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": b"", "scheme": "http", "server": ("test", 80),
        "headers": [(name.encode(), value) for name, value in headers.items()],
    }  # fmt: skip
    await app(scope, receive, answer)  # type: ignore[arg-type]
    return sent[0], b"".join(message.get("body", b"") for message in sent[1:])


def check(start: Any, body: bytes, statuses: set[int], given: str) -> None:
    assert start["status"] in statuses, (given, start["status"], body)
    for name, value in start["headers"]:
        assert not set(b"\r\n\0") & set(name + value), (given, name, value)
        assert b"injected" not in name.lower()
        assert name.lower() != b"set-cookie"
    error = json.loads(body)["error"]
    assert len(given) < 4 or given not in error["message"]
    assert "/etc" not in error["message"]


async def test_paths_names_and_request_ids(app: FastAPI) -> None:
    for given in strings():
        raw = given.encode()
        check(*await send(app, "GET", f"/probes/{given}", {"x-request-id": raw}), {404, 405, 422}, given)
        check(*await send(app, "GET", f"/v1/models/{given}", {}), {404, 422}, given)
        check(*await send(app, "GET", f"/{given}", {}), {404}, given)
        for field in ("task", "probe"):
            asked = json.dumps({"inputs": "x", "steering": {field: given}}).encode()
            check(*await send(app, "POST", "/generate", {"origin": raw}, asked), {404, 422}, given)


async def test_keys(settings: Settings, serving: Serving, ready_app: Ready, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    assert main(["keys", "add", "a", "--keys-file", str(path)]) == 0
    app = ready_app(create_app(settings.model_copy(update={"keys_file": path}), loader=lambda _: serving))
    for given in strings():
        for value in (given, f"Bearer {given}", f"Bearer mera_{given}"):
            check(*await send(app, "GET", "/tasks", {"authorization": value.encode()}), {401}, given)
        for method, place in (("GET", f"/health/live/{given}"), ("GET", f"/{given}"), ("POST", f"/generate/{given}")):
            check(*await send(app, method, place, {}), {401}, given)


@pytest.mark.parametrize("name", strings()[::25])
def test_names_of_keys(name: str, tmp_path: Path) -> None:
    assert main(["keys", "add", name, "--keys-file", str(tmp_path / "keys.json")]) == 2
    assert not list(tmp_path.iterdir())
