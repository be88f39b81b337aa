"""Hosts, origins and content types: what a page of another site can make a browser send is refused, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from mera_server.guard import Guard, is_foreign, is_private
from mera_server.settings import Settings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from merasteer.errors import Forbidden

ADDRESSES = [
    "127.0.0.1",
    "127.0.0.1:8000",
    "[::1]:8000",
    "[::1]",
    "10.1.2.3:80",
    "[fe80::1%eth0]:80",
    "localhost:8000",
    "LOCALHOST",
]
PRIVATE = [
    "mera",
    "mera:8000",
    "test",
    "mera.default.svc.cluster.local",
    "mera.default.svc",
    "box.internal:1",
    "box.lan",
    "me.localhost",
    "",
]
PUBLIC = [
    "evil.example.com",
    "evil.com:8000",
    "127.0.0.1.evil.com",
    "localhost.evil.com",
    "evil.com.",
    "a b.com",
    "::1",
    "x:y:z",
]


@pytest.mark.parametrize("host", [*ADDRESSES, *PRIVATE])
def test_names_that_no_outsider_owns_are_private(host: str) -> None:
    assert is_private(host)


@pytest.mark.parametrize("host", PUBLIC)
def test_names_that_an_outsider_may_own_are_not(host: str) -> None:
    assert not is_private(host)


def test_with_names_given_only_these_and_addresses_are_answered() -> None:
    assert all(
        is_private(host, {"llm.example.org"}) for host in [*ADDRESSES, "llm.example.org", "LLM.example.org.:443"]
    )
    assert not any(is_private(host, {"llm.example.org"}) for host in (*PRIVATE, *PUBLIC, "x.llm.example.org"))


@pytest.mark.parametrize(
    ("origin", "host", "foreign"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", False),
        ("https://llm.example.org", "llm.example.org", False),
        ("https://llm.example.org", "llm.example.org:443", False),
        ("http://LLM.example.org", "llm.example.org:80", False),
        ("http://127.0.0.1:3000", "127.0.0.1:8000", True),
        ("http://localhost:8000", "127.0.0.1:8000", True),
        ("https://evil.com", "127.0.0.1:8000", True),
        ("null", "127.0.0.1:8000", True),
        ("chrome-extension://abcdef", "127.0.0.1:8000", True),
        ("https://a.example", "127.0.0.1:8000", False),
        ("no origin at all", "127.0.0.1:8000", False),
    ],
)
def test_a_page_of_another_site_is_foreign(origin: str, host: str, foreign: bool) -> None:
    assert is_foreign(origin, host, {"https://a.example"}) == foreign


async def asked(settings: Settings, method: str, path: str = "/generate", **headers: str) -> Any:
    async def answered(_request: Request) -> Response:
        return PlainTextResponse("yes")

    routes = [Route(p, answered, methods=["GET", "POST"]) for p in ("/generate", "/probes/reload", "/tasks")]
    app = Guard(Starlette(routes=routes), settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
        return await client.request(
            method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )


KEYS = {"keys_file": Path("keys.json")}


@pytest.mark.parametrize(
    ("options", "host", "answered"),
    [
        ({}, "evil.com", False),
        ({"host": "0.0.0.0"}, "evil.com", False),
        (KEYS, "evil.com", True),
        ({"open": True}, "evil.com", True),
        ({"allowed_host": ("*",)}, "evil.com", True),
        ({"allowed_host": ("evil.com",)}, "evil.com", True),
        ({"allowed_host": ("llm.example.org",)}, "evil.com", False),
        ({"allowed_host": ("llm.example.org",), **KEYS}, "evil.com", False),
        ({"allowed_host": ("llm.example.org",)}, "127.0.0.1", True),
    ],
)
async def test_a_rebound_name_is_refused_where_nobody_is_asked_for_a_key(
    options: dict[str, Any], host: str, answered: bool
) -> None:
    for method in ("GET", "POST"):
        if answered:
            assert (await asked(Settings(**options), method, host=host)).text == "yes"
        else:
            with pytest.raises(Forbidden, match=r"^host: .*--allowed-host"):
                await asked(Settings(**options), method, host=host)


async def test_a_foreign_page_may_change_and_generate_nothing() -> None:
    settings = Settings(cors_origin=("https://a.example",))
    for path in ("/generate", "/probes/reload"):
        for kind in ("text/plain", "application/json"):
            with pytest.raises(Forbidden, match=r"^origin: .*--cors-origin"):
                await asked(settings, "POST", path, origin="https://evil.com", content_type=kind)
    assert (await asked(settings, "POST", origin="https://a.example")).text == "yes"
    assert (
        await asked(settings, "GET", "/tasks", origin="https://evil.com")
    ).text == "yes"  # it cannot read the answer
    assert (await asked(Settings(cors_origin=("*",)), "POST", origin="https://evil.com")).text == "yes"


async def test_what_changes_the_server_takes_json_or_nothing() -> None:
    for kind in ("text/plain", "TEXT/PLAIN; charset=utf-8", "application/x-www-form-urlencoded", "multipart/form-data"):
        with pytest.raises(Forbidden, match=r"^content-type: "):
            await asked(Settings(), "POST", "/probes/reload", content_type=kind)
        assert (await asked(Settings(), "POST", content_type=kind)).text == "yes"  # curl -d says so
    for headers in ({}, {"content_type": "application/json"}):
        assert (await asked(Settings(), "POST", "/probes/reload", **headers)).text == "yes"
