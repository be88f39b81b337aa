"""What is repeated and what never is, how long is waited, and where it ends. Nobody sleeps: time is `Clock`'s."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest
from mera_client import ConnectionFailed, InvalidInput, MeraError, NotReady, Overloaded, Retries, TimedOut

from .conftest import GENERATION

OK = httpx.Response(200, json=GENERATION)


def refused(status: int = 429, code: str = "overloaded", **headers: str) -> httpx.Response:
    error = {"error": {"code": code, "message": "later"}}
    return httpx.Response(status, json=error, headers={name.replace("_", "-"): text for name, text in headers.items()})


@pytest.mark.parametrize(
    "failure",
    [
        refused(),
        refused(503, "not_ready"),
        refused(503, "engine_failed"),
        httpx.Response(503, text="<html>a proxy"),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("no way"),
    ],
    ids=["429", "not_ready", "engine_failed", "proxy", "refused", "connect timeout"],
)
async def test_what_was_not_begun_is_repeated(call, server, clock, failure):
    server.answers = [failure, failure, OK]
    assert (await call("generate", "hello")).generated_text == " spam"
    assert len(server.requests) == 3
    assert server.requests[0].content == server.requests[2].content
    assert clock.slept == [0.5, 1.0]


@pytest.mark.parametrize(
    "failure",
    [
        *(httpx.Response(status, json={}) for status in (302, 400, 401, 403, 404, 408, 413, 422, 499, 500, 502, 504)),
        refused(503, "deadline_exceeded"),
        httpx.ReadTimeout("slow"),
        httpx.WriteTimeout("slow"),
        httpx.PoolTimeout("busy"),
        httpx.ReadError("reset"),
        httpx.WriteError("reset"),
        httpx.RemoteProtocolError("cut"),
        httpx.UnsupportedProtocol("ftp"),
    ],
    ids=str,
)
async def test_what_may_have_been_begun_never_is(call, server, clock, failure):
    server.answers = [failure]
    with pytest.raises(MeraError):
        await call("generate", "hello")
    assert (len(server.requests), clock.slept) == (1, [])


@pytest.mark.parametrize("method", ["tasks", "probes", "info"])
async def test_reading_calls_are_repeated_too(call, server, method):
    server.answers = [refused(503, "not_ready"), httpx.Response(200, json={"tasks": [], "probes": []})]
    await call(method)
    assert len(server.requests) == 2


@pytest.mark.parametrize("method", ["live", "ready"])
@pytest.mark.parametrize("failure", [refused(503, "not_ready"), httpx.ConnectError("refused")], ids=["503", "refused"])
async def test_health_is_asked_once(call, server, clock, method, failure):
    server.answer = failure
    assert await call(method) is False
    assert (len(server.requests), clock.slept) == (1, [])


async def test_attempts_end_with_the_last_error(call, server, clock):
    server.answers = [refused(), refused(), httpx.ConnectError("refused"), refused(503, "not_ready"), OK]
    with pytest.raises(NotReady, match="later"):
        await call("generate", "hello")
    assert len(server.requests) == 4
    server.answers = [refused(), refused(), refused(), httpx.ConnectError("gone"), OK]
    with pytest.raises(ConnectionFailed, match="gone"):
        await call("generate", "hello")


async def test_without_retries_there_is_one_attempt(call, server):
    server.answer = refused()
    for policy in (None, Retries(attempts=1)):
        with pytest.raises(Overloaded):
            await call("generate", "hello", retries=policy)
    assert len(server.requests) == 2


async def test_waits_double_up_to_the_longest_and_vary_by_half(call, server, clock, retries):
    server.answer = refused()
    policy = replace(retries, attempts=8, deadline=1e9, first=0.5, longest=6.0)
    for draw, share in ((1.0, 1.0), (0.0, 0.5), (0.5, 0.75)):
        clock.draw, clock.slept = draw, []
        with pytest.raises(Overloaded):
            await call("generate", "hello", retries=policy)
        assert clock.slept == [share * span for span in (0.5, 1.0, 2.0, 4.0, 6.0, 6.0, 6.0)]


async def test_a_thousand_attempts_do_not_overflow(call, server, clock, retries):
    server.answer = refused()
    with pytest.raises(Overloaded):
        await call("generate", "hello", retries=replace(retries, attempts=1200, deadline=float("inf")))
    assert (len(server.requests), max(clock.slept)) == (1200, 8.0)


DATE = {"date": "Mon, 23 Nov 2026 10:00:00 GMT"}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "3"}, 3.0),
        ({"retry_after": " 0 "}, 0.0),
        ({"retry_after": "Mon, 23 Nov 2026 10:00:07 GMT", **DATE}, 7.0),
        ({"retry_after": "Mon, 23 Nov 2026 09:00:00 GMT", **DATE}, 0.0),
        ({"retry_after": "Mon, 23 Nov 2026 10:00:07 GMT"}, 0.0),  # whose clock would it be?
        ({"retry_after": "Mon, 23 Nov 2026 10:00:07 -0000", **DATE}, 0.0),  # without a time zone
        ({"retry_after": "-5"}, 0.0),
        ({"retry_after": "1.5"}, 0.0),
        ({"retry_after": "nan"}, 0.0),
        ({"retry_after": "soon"}, 0.0),
        ({"retry_after": ""}, 0.0),
    ],
)
async def test_retry_after_is_waited_for_besides(call, server, clock, headers, seconds):
    server.answers = [refused(**headers), OK]
    await call("generate", "hello")
    assert clock.slept == [seconds + 0.5]


async def test_no_request_begins_behind_the_deadline(call, server, clock, retries):
    server.answers = [refused(retry_after="9"), refused(retry_after="9"), refused(retry_after="12"), OK]
    policy = replace(retries, first=1.0, deadline=30.0)
    with pytest.raises(Overloaded):  # 10 s and 11 s were waited for, 9 are left, and 12 + 4 would be needed
        await call("generate", "hello", retries=policy)
    assert clock.slept == [10.0, 11.0]
    server.answers = [refused(retry_after="999999"), OK]
    with pytest.raises(Overloaded):
        await call("generate", "hello", retries=policy)
    assert clock.slept == [10.0, 11.0]


async def test_the_deadline_counts_the_time_of_the_attempts(call, server, clock):
    def slow(_: httpx.Request) -> httpx.Response:
        clock.now += 29.0
        return refused()

    server.answers = [slow, slow, OK]
    with pytest.raises(Overloaded):
        await call("generate", "hello")
    assert len(server.requests) == 2


async def test_a_timeout_behind_a_retry_is_told(call, server):
    server.answers = [refused(), httpx.ReadTimeout("slow")]
    with pytest.raises(TimedOut):
        await call("generate", "hello")


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"deadline": -1}, {"first": float("nan")}, {"longest": -0.1}], ids=str
)
def test_a_policy_that_is_none_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(InvalidInput, match=rf"^retries\.{name}: "):
        Retries(**wrong)
