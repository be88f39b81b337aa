"""NO_PROXY with IPv6 in it: entries that httpx cannot read are read here, and nobody blames base_url."""

from __future__ import annotations

from typing import Any

import pytest
from mera_client import AsyncClient, Client, InvalidInput
from mera_client._proxies import environment, spares


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("entry", "host", "spared"),
    [
        ("*", "anything", True),
        ("::1", "::1", True),
        ("[::1]", "::1", True),
        ("[::1]:8000", "::1", True),
        ("[::1]", "::2", False),
        ("fe80::/10", "fe80::7%eth0", True),
        ("fe80::/10", "::1", False),
        ("[fd00::]/8", "fd12::1", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "fd12::1", False),
        ("example.org", "llm.example.org", True),
        (".example.org:443", "llm.example.org", True),
        ("*.example.org", "LLM.example.org", True),
        ("example.org", "badexample.org", False),
        ("fe80::/10", "example.org", False),
    ],
)
def test_what_an_entry_spares(entry: str, host: str, spared: bool) -> None:
    assert spares(entry, host) == spared


@pytest.mark.parametrize("entries", ["", "localhost,127.0.0.1", "::1", "10.0.0.0/8,host:8080,.example.org"])
def test_what_httpx_reads_itself_is_left_to_it(monkeypatch: pytest.MonkeyPatch, entries: str) -> None:
    monkeypatch.setenv("NO_PROXY", entries)
    assert environment("http://[::1]:8000") == {}


@pytest.mark.parametrize("entries", ["[::1]", "fe80::/10,::1", "localhost, ::1/128", "[::1]:8000"])
@pytest.mark.parametrize(("address", "proxied"), [("http://[::1]:8000", False), ("http://example.org", True)])
def test_networks_and_brackets_are_read_here(
    monkeypatch: pytest.MonkeyPatch, entries: str, address: str, proxied: bool
) -> None:
    monkeypatch.setenv("NO_PROXY", entries)
    monkeypatch.setenv("HTTP_PROXY", "proxy.test:3128")
    found: dict[str, Any] = environment(address)
    assert found["proxy"] == ("http://proxy.test:3128" if proxied else None)
    assert found["trust_env"] is False


@pytest.mark.parametrize("entries", ["[::1]", "fe80::/10", "::1/128"])
async def test_clients_can_be_made_and_a_wrong_url_is_still_told(monkeypatch: pytest.MonkeyPatch, entries: str) -> None:
    monkeypatch.setenv("NO_PROXY", entries)
    with Client("http://[::1]:8000"):
        pass
    async with AsyncClient("http://[::1]:8000"):
        pass
    with pytest.raises(InvalidInput, match=r"^base_url: "):
        Client("http://[::1:8000")
