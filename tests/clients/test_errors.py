"""Every way to fail becomes one of the client's exceptions."""

from __future__ import annotations

import httpx
import mera_client
import pytest
from mera_client import BadResponse, Client, ConnectionFailed, InvalidInput, MeraError, TimedOut
from mera_client._errors import SERVER_ERRORS

from merasteer import errors


def test_the_tree_is_the_servers():
    ours = {kind.code: kind for name in errors.__all__ if (kind := getattr(errors, name))}
    assert set(SERVER_ERRORS) == set(ours)
    for code, kind in SERVER_ERRORS.items():
        assert (kind.__name__, kind.status) == (ours[code].__name__, ours[code].status)
        assert kind.__base__.__name__ == ours[code].__base__.__name__
        assert kind.__name__ in mera_client.__all__


@pytest.mark.parametrize("kind", SERVER_ERRORS.values(), ids=SERVER_ERRORS)
async def test_each_code_raises_its_class(call, server, kind):
    error = {"error": {"code": kind.code, "message": "alpha: 2 is not in (0, 1)"}}
    server.answer = httpx.Response(kind.status, json=error, headers={"X-Request-Id": "r1"})
    with pytest.raises(MeraError, match="alpha: 2") as caught:
        await call("generate", "hello")
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.status, caught.value.request_id) == (kind.code, kind.status, "r1")
    assert caught.value.message == str(caught.value) == "alpha: 2 is not in (0, 1)"


async def test_a_code_of_a_newer_server_is_the_base_class(call, server):
    server.answer = httpx.Response(400, json={"error": {"code": "of_a_newer_server", "message": "it has none"}})
    with pytest.raises(MeraError) as caught:
        await call("generate", "hello")
    assert type(caught.value) is MeraError
    assert (caught.value.code, caught.value.status) == ("of_a_newer_server", 400)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(502, text="<html>Bad Gateway"),
        httpx.Response(500, json=["error"]),
        httpx.Response(500, json={"error": "broken"}),
        httpx.Response(500, json={"error": {"code": "internal_error"}}),
        httpx.Response(302, headers={"location": "http://elsewhere.test"}),
    ],
)
async def test_an_error_that_is_not_the_servers_keeps_its_status(call, server, answer):
    server.answer = answer
    with pytest.raises(BadResponse, match="check base_url") as caught:
        await call("generate", "hello")
    assert caught.value.status == answer.status_code


@pytest.mark.parametrize(
    "answer", [httpx.Response(200, text="hello"), httpx.Response(200, json=[1]), httpx.Response(200, json={})]
)
@pytest.mark.parametrize("method", ["generate", "tasks"])
async def test_a_success_that_is_not_the_servers_is_a_bad_response(call, server, method, answer):
    server.answer = answer
    with pytest.raises(BadResponse):
        await call(method, *(["hello"] if method == "generate" else []))


@pytest.mark.parametrize(
    ("raised", "expected", "code"),
    [
        (httpx.ConnectError("refused"), ConnectionFailed, "connection_failed"),
        (httpx.ReadError(""), ConnectionFailed, "connection_failed"),
        (httpx.RemoteProtocolError("cut"), ConnectionFailed, "connection_failed"),
        (httpx.ReadTimeout("slow"), TimedOut, "timed_out"),
        (httpx.PoolTimeout("busy"), TimedOut, "timed_out"),
        (httpx.DecodingError("not gzip"), BadResponse, "bad_response"),
        (httpx.TooManyRedirects("loop"), BadResponse, "bad_response"),
    ],
)
async def test_what_httpx_raises_is_mapped(call, server, raised, expected, code):
    server.answer = raised
    with pytest.raises(expected) as caught:
        await call("generate", "hello")
    assert (caught.value.code, caught.value.status) == (code, None)
    assert caught.value.__cause__ is raised


def test_no_httpx_error_is_left_unmapped(server):
    """Every exception class of httpx that a request can raise."""
    pending, kinds = [httpx.HTTPError], []
    while pending:
        kinds.append(pending.pop())
        pending += kinds[-1].__subclasses__()
    with Client("http://mera.test", transport=httpx.MockTransport(server), retries=None) as client:
        for kind in set(kinds) - {httpx.HTTPStatusError}:  # raised by raise_for_status alone, which is not called
            server.answer = kind("it broke")
            with pytest.raises(MeraError):
                client.generate("hello")


def test_a_base_url_that_is_none_is_named():
    with pytest.raises(InvalidInput, match="base_url"):
        Client("http://mera.test:port")
    with Client("mera.test", retries=None) as client, pytest.raises(ConnectionFailed, match="base_url"):
        client.info()
