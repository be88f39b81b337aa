"""Streams through both clients: what is sent, the events however their bytes are cut, errors inside them, and leaving early."""

from __future__ import annotations

import json

import httpx
import pytest
from mera_client import (
    BadResponse,
    ConnectionFailed,
    EngineFailed,
    Generation,
    InvalidInput,
    MeraError,
    Overloaded,
    PredictedError,
    Step,
    StepError,
    TimedOut,
    Token,
)
from mera_client._decode import decode

from .conftest import GENERATION, Chunks, sse, stream_of

# What str.splitlines takes for the end of a line, and JSON does not escape.
TEXTS = [" sp\u2028am", "\x85", " é😀", ""]
EVENTS = stream_of(GENERATION, TEXTS)
FAILED = {"error": {"code": "engine_failed", "message": "the loop died"}}


async def test_the_request_is_that_of_generate_with_stream(call, server):
    options = {"max_new_tokens": 4, "stop": "END", "seed": 3, "steering": {"task": "t"}, "mera_details": "trace"}
    await call("generate", "hello", **options)
    plain = server.body
    server.answer = Chunks(sse(EVENTS))
    await call("generate_stream", "hello", **options)
    assert server.requests[-1].url.path == "/generate"
    assert server.body == {**plain, "stream": True}


async def test_every_event_is_read_and_the_last_brings_the_rest(call, server):
    server.answer = Chunks(sse(EVENTS))
    *events, last = await call("generate_stream", "hello")
    assert [event.index for event in (*events, last)] == [1, 2, 3, 4]
    assert [event.token.text for event in (*events, last)] == TEXTS
    assert events[0].token == Token(7, TEXTS[0], -0.5, False)
    assert events[0].step == Step(True, StepError(0.7, 0.3), None)
    assert [event.last for event in (*events, last)] == [False, False, False, True]
    assert all(event.generated_text is event.details is event.mera is None for event in events)
    plain = decode(Generation, GENERATION)
    assert (last.generated_text, last.details, last.mera) == ("".join(TEXTS), plain.details, plain.mera)
    assert last.mera.predicted_error == PredictedError(0.71, 0.31, 5, "last_prompt")


async def test_traces_and_steps_that_were_not_asked_for(call, server):
    trace = {"before": [0.7, 1], "after": [0.3, 1], "shift": [0.1, 0]}
    steps = [{"predicted_error": None, "steered": False, "trace": trace}, None]
    events = [{**event, "step": step} for event, step in zip(EVENTS[:1] + EVENTS[-1:], steps, strict=True)]
    server.answer = Chunks(sse(events))
    first, second = await call("generate_stream", "hello")
    assert (first.step.predicted_error, first.step.trace.before, first.step.trace.shift) == (None, (0.7, 1), (0.1, 0))
    assert second.step is None


@pytest.mark.parametrize(
    "raw",
    [
        sse(EVENTS),
        sse(EVENTS).replace(b"\n", b"\r\n"),
        sse(EVENTS).replace(b"data:", b"data: "),
        b": comment\n\nevent: token\n" + sse(EVENTS).replace(b"data:", b"id: 3\nretry: 5\ndata:"),
        b"\n\n" + sse(EVENTS).replace(b', "token"', b',\ndata: "token"'),
    ],
    ids=["plain", "crlf", "space", "other fields", "two lines"],
)
async def test_where_the_bytes_are_cut_changes_nothing(call, server, raw):
    server.answer = Chunks(raw)
    whole = await call("generate_stream", "hello")
    assert [event.token.text for event in whole] == TEXTS
    server.answer = Chunks(*(raw[i : i + 1] for i in range(len(raw))))
    assert await call("generate_stream", "hello") == whole
    for cut in range(0, len(raw), 41):
        server.answer = Chunks(raw[:cut], raw[cut:])
        assert await call("generate_stream", "hello") == whole


async def test_an_event_is_there_as_soon_as_its_bytes_are(call, server):
    server.answer = body = Chunks(*(sse([event]) for event in EVENTS))
    (event,) = await call("generate_stream", "hello", take=1)
    assert (event.index, body.sent, body.closed) == (1, 1, True)


@pytest.mark.parametrize("take", [0, 1, 3, 4, 5])
async def test_leaving_at_any_point_closes_the_answer(call, server, take):
    server.answer = body = Chunks(*(sse([event]) for event in EVENTS))
    assert len(await call("generate_stream", "hello", take=take)) == min(take, 4)
    assert body.closed is (take > 0)
    assert len(server.requests) == (take > 0)  # nothing is asked before the first event is


async def test_an_error_before_the_stream_is_an_ordinary_one(call, server):
    error = {"error": {"code": "invalid_input", "message": "alpha: 2"}}
    server.answer = httpx.Response(422, json=error, headers={"x-request-id": "r1"})
    with pytest.raises(InvalidInput, match="alpha: 2") as caught:
        await call("generate_stream", "hello")
    assert (caught.value.status, caught.value.request_id) == (422, "r1")


@pytest.mark.parametrize("before", [0, 1, 3])
async def test_an_error_inside_the_stream_is_raised_behind_the_tokens(call, server, before):
    server.answer = body = Chunks(sse([*EVENTS[:before], FAILED]))
    assert len(await call("generate_stream", "hello", take=before)) == before
    with pytest.raises(EngineFailed, match="the loop died") as caught:
        await call("generate_stream", "hello")
    assert (caught.value.code, caught.value.status, caught.value.request_id) == ("engine_failed", 503, "r7")
    assert body.closed


async def test_an_error_of_a_newer_server_inside_the_stream(call, server):
    server.answer = Chunks(sse([{"error": {"code": "tired", "message": "go away"}}]))
    with pytest.raises(MeraError, match="go away") as caught:
        await call("generate_stream", "hello")
    assert (type(caught.value), caught.value.code) == (MeraError, "tired")


@pytest.mark.parametrize(
    ("pieces", "kind", "match"),
    [
        ((sse(EVENTS[:2]),), BadResponse, "ended before its last event"),
        ((), BadResponse, "ended before its last event"),
        ((sse(EVENTS)[:-1],), BadResponse, "ended before its last event"),
        ((sse(EVENTS[:1]), httpx.ReadError("reset")), ConnectionFailed, "reset"),
        ((sse(EVENTS[:1]), httpx.RemoteProtocolError("peer closed")), ConnectionFailed, "peer closed"),
        ((sse(EVENTS[:1]), httpx.ReadTimeout("slow")), TimedOut, "longer timeout"),
        ((b"data:{'a'}\n\n",), BadResponse, "not JSON"),
        ((b"data:\xff\n\n",), BadResponse, "not JSON"),
        ((b"data:[DONE]\n\n",), BadResponse, "not JSON"),
        ((b"data:[1]\n\n",), BadResponse, "list where dict"),
        ((sse([{"index": 1}]),), BadResponse, "token is missing"),
        ((sse([{**EVENTS[0], "token": {**EVENTS[0]["token"], "id": "7"}}]),), BadResponse, r"event\.token\.id"),
        ((sse([{"error": "broken"}]),), BadResponse, "without code"),
        ((sse([{"error": None}]),), BadResponse, "without code"),
    ],
)
async def test_a_stream_that_breaks_is_an_error_and_never_repeated(call, server, pieces, kind, match):
    server.answer = body = Chunks(*pieces)
    with pytest.raises(kind, match=match):
        await call("generate_stream", "hello")
    assert len(server.requests) == 1
    assert body.closed


async def test_an_answer_that_is_no_stream_is_a_bad_response(call, server):
    with pytest.raises(BadResponse, match="not text/event-stream"):  # the server of an older version, say
        await call("generate_stream", "hello")


async def test_a_refused_stream_is_repeated_until_its_first_byte(call, server, clock):
    busy = httpx.Response(429, json={"error": {"code": "overloaded", "message": "full"}}, headers={"retry-after": "1"})
    server.answers = [busy, httpx.ConnectError("refused"), Chunks(sse(EVENTS))]
    assert len(await call("generate_stream", "hello")) == 4
    assert (len(server.requests), len(clock.slept)) == (3, 2)
    server.answers = [busy] * 9
    with pytest.raises(Overloaded, match="full"):
        await call("generate_stream", "hello")
    assert len(server.requests) == 3 + 4


async def test_an_answer_that_is_not_the_last_is_closed_too(call, server):
    busy = Chunks(b"{}", status=503)
    server.answers = [busy, Chunks(sse(EVENTS))]
    await call("generate_stream", "hello")
    assert busy.closed


def test_the_events_of_these_tests_are_those_of_the_contract():
    assert json.loads(sse(EVENTS).split(b"\n\n")[0][5:]) == {
        "index": 1,
        "token": {"id": 7, "text": TEXTS[0], "logprob": -0.5, "special": False},
        "step": {"predicted_error": {"before": 0.7, "after": 0.3}, "steered": True, "trace": None},
        "generated_text": None,
        "details": None,
        "mera": None,
    }
