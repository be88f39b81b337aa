"""Streams of the real engine: they tell what the plain answer tells, token by token, and leave nothing behind when they are cut off."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from mera_server.loading import Serving
from mera_server.replies import StreamReply

FIELDS = {"desk": "B", "text": "Win a holiday for two. Enter your code 2220 online."}
SPAM = {"inputs": FIELDS, "steering": {"task": "demo_spam", "alpha": 0.05}, "parameters": {"max_new_tokens": 6}}
LONG = {"inputs": "Message:", "parameters": {"max_new_tokens": 900}, "stream": True}


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data:")) for line in text.splitlines() if line]


def near(one: Any) -> Any:
    """`one` with room for the last bits of its numbers, which depend on what is batched together."""
    if isinstance(one, dict):
        return {name: near(value) for name, value in one.items()}
    if isinstance(one, list):
        return [near(value) for value in one]
    return pytest.approx(one, abs=1e-4) if isinstance(one, float) else one


BODIES: list[dict[str, Any]] = [
    SPAM,
    {**SPAM, "details": "trace"},
    {**SPAM, "details": "none"},
    {**SPAM, "steering": {"task": "demo_spam", "method": "none"}},
    {**SPAM, "steering": {"task": "demo_desk_a"}, "inputs": {"text": "hello"}},
    {"inputs": "Message:", "parameters": {"max_new_tokens": 40, "temperature": 1.2, "seed": 3}},
    {"inputs": "Message:", "parameters": {"max_new_tokens": 60, "temperature": 100.0, "seed": 4}},  # any bytes at all
    {"inputs": "Message:", "parameters": {"max_new_tokens": 60, "stop": ["e", "a "]}},
    {"inputs": "Message:", "parameters": {"max_new_tokens": 9, "return_full_text": True}},
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
async def test_a_stream_tells_what_the_plain_answer_tells(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    parameters = {**body["parameters"], "details": True}
    plain = (await client.post("/generate", json={**body, "parameters": parameters})).json()
    for route in ("/generate", "/generate_stream", "/"):
        response = await client.post(route, json={**body, "stream": True})
        assert response.headers["content-type"] == "text/event-stream"
        found = events(response.text)
        for one in found:
            StreamReply.model_validate(one)
        assert [one["index"] for one in found] == list(range(1, len(found) + 1))
        last, tokens = found[-1], plain["details"]["tokens"]
        told = [(one["token"]["id"], one["token"]["logprob"], one["token"]["special"]) for one in found]
        assert told == [(t["id"], near(t["logprob"]), t["special"]) for t in tokens]
        head = body["inputs"] if body["parameters"].get("return_full_text") else ""
        assert (
            head + "".join(one["token"]["text"] for one in found) == last["generated_text"] == plain["generated_text"]
        )
        assert last["details"] == {k: v for k, v in plain["details"].items() if k not in ("tokens", "prefill")}
        assert last["mera"] == near(plain["mera"])


async def test_each_token_tells_its_own_step(client: httpx.AsyncClient, serving: Serving) -> None:
    found = events((await client.post("/generate_stream", json={**SPAM, "details": "trace"})).text)
    mera, steps = found[-1]["mera"], [one["step"] for one in found]
    layer = mera["predicted_error"]["layer"]
    assert mera["decision"] == "steered"
    assert steps[0]["predicted_error"] == {name: mera["predicted_error"][name] for name in ("before", "after")}
    assert sum(one["steered"] for one in steps) == mera["steering"]["steered_tokens"]
    assert [{**step["trace"], "id": one["token"]["id"]} for step, one in zip(steps, found, strict=True)] == [
        {name: entry[name] for name in ("before", "after", "shift", "id")} for entry in mera["trace"]
    ]
    for step in steps:
        assert step["trace"]["before"][layer] == pytest.approx(step["predicted_error"]["before"], abs=1e-5)
        assert step["steered"] is any(shift > 0 for shift in step["trace"]["shift"])
    summary = events((await client.post("/generate_stream", json=SPAM)).text)
    assert [one["step"] for one in summary] == [{**near(step), "trace": None} for step in steps]
    none = events((await client.post("/generate_stream", json={**SPAM, "details": "none"})).text)
    assert [one["step"] for one in none] == [None] * len(none)
    assert set(none[-1]["mera"]) == {"decision", "reason", "alpha"}
    plain = events((await client.post("/generate_stream", json={"inputs": "Desk A.", "details": "trace"})).text)
    assert all(one["step"] == {"predicted_error": None, "steered": False, "trace": None} for one in plain)


async def test_tokens_come_while_the_engine_runs(address: str, serving: Serving) -> None:
    async with httpx.AsyncClient() as client, client.stream("POST", f"{address}/generate", json=LONG) as response:
        lines = response.aiter_lines()
        first = json.loads((await anext(lines)).removeprefix("data:"))
        assert first["index"] == 1
        assert serving.engine.stats().running == 1
    await idle(serving)


async def idle(serving: Serving) -> None:
    for _ in range(1000):
        stats = serving.engine.stats()
        if stats.running == stats.waiting == 0:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError(f"still running: {stats}")


# ----------------------------------------------------------------------------------- callers who leave


@pytest.fixture
async def port(app: FastAPI) -> AsyncIterator[int]:
    """The application on a socket, in the event loop of the test: its tasks can be counted."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield int(listener.getsockname()[1])
        server.should_exit = True
        await asyncio.wait_for(task, 20)


async def cut(port: int, rng: random.Random) -> None:
    """One stream, cut off by the caller: in its body, before its first byte, behind some bytes, or behind its end."""
    body = json.dumps({**LONG, "parameters": {"max_new_tokens": rng.choice([1, 20, 300])}}).encode()
    route = rng.choice(["/generate", "/generate_stream", "/"])
    head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    where = rng.random()
    writer.write(head + (body[: rng.randrange(len(body))] if where < 0.1 else body))
    await writer.drain()
    if where < 0.2:
        await asyncio.sleep(rng.random() * 0.02)
    elif where < 0.9:
        with suppress(asyncio.IncompleteReadError):
            await reader.readexactly(rng.randrange(1, 8000))
    else:
        await reader.readuntil(b"0\r\n\r\n")
    if rng.random() < 0.5:
        writer.transport.abort()  # a reset
    else:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def cuts(client: httpx.AsyncClient, serving: Serving, port: int, count: int) -> None:
    rng, gate = random.Random(0), asyncio.Semaphore(48)  # more than there are slots: some leave while they wait
    before, threads = asyncio.all_tasks(), threading.active_count()
    expected = (await client.post("/generate", json=SPAM)).json()

    async def one(seed: int) -> None:
        async with gate:
            await asyncio.wait_for(cut(port, random.Random(seed)), 60)

    await asyncio.gather(*(one(rng.getrandbits(32)) for _ in range(count)))
    await idle(serving)
    for _ in range(200):
        if asyncio.all_tasks() == before:
            break
        await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before
    assert threading.active_count() <= threads + 1
    assert serving.engine.stats().cache_used_ratio == 0
    lines = [line for line in (await client.get("/metrics")).text.splitlines() if not line.startswith("#")]
    found = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
    gauges = ("mera_requests_running", "mera_requests_waiting", "mera_cache_used_ratio")
    assert [found[name] for name in gauges] == [0, 0, 0]
    counted = {name: n for name, n in found.items() if name.startswith("mera_requests_total")}
    assert sum(counted.values()) == count + 1  # each once, the plain one too
    assert {name.split('status="')[1][:3] for name in counted} == {"200", "499"}
    assert sum(n for name, n in counted.items() if 'status="499"' in name) > count / 3
    finished = sum(n for name, n in found.items() if name.startswith("mera_decisions_total"))
    assert finished == found["mera_queue_seconds_count"] < count
    assert (await client.post("/generate", json=SPAM)).json() == near(expected)


async def test_streams_that_are_cut_off_leave_nothing(client: httpx.AsyncClient, serving: Serving, port: int) -> None:
    await cuts(client, serving, port, 60)


@pytest.mark.slow
async def test_a_thousand_streams_cut_off(client: httpx.AsyncClient, serving: Serving, port: int) -> None:
    await cuts(client, serving, port, 1000)


async def test_a_server_that_stops_in_mid_stream_frees_the_engine(app: FastAPI, serving: Serving) -> None:
    """The serving task is cancelled."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        task = asyncio.create_task(client.post("/generate", json=LONG))
        while serving.engine.stats().running == 0:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(serving)
    assert 'mera_requests_total{route="/generate",status="499"} 1.0' in app.state.runtime.metrics.text().decode()


# ------------------------------------------------------------------------------- settings under full load


def settings_of(number: int) -> dict[str, Any]:
    """One of 32 bodies, no two alike in what they ask of the engine."""
    parameters: dict[str, Any] = {"max_new_tokens": 3 + number, "details": True}
    if number % 4:
        parameters |= {"temperature": (0.0, 0.7, 1.3, 3.0)[number % 4], "seed": number}
    if number % 5 == 0:
        parameters["stop"] = [("e", "o", "is ", "spam", "t")[number // 5 % 5]]
    if number % 7 == 3:
        parameters |= {"top_k": number, "top_p": 0.9}
    body: dict[str, Any] = {"inputs": f"Message {number}:", "parameters": parameters}
    if number % 3:
        fields = {**FIELDS, "text": f"Win a holiday for two. Enter your code {2220 + number} online."}
        steering: dict[str, Any] = {"task": "demo_spam", "alpha": 0.02 + number / 100}
        steering["positions"] = ("generation", "all", "last", [0, number % 9 + 1])[number % 4]
        if number % 8 == 5:
            steering = {"task": "demo_spam", "method": "none"}
        body = {"inputs": fields, "steering": steering, "parameters": parameters, "details": "trace"}
    return body


async def test_32_settings_in_one_batch_equal_each_alone(address: str, serving: Serving) -> None:
    bodies = [settings_of(number) for number in range(32)]
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        alone = [(await client.post("/generate", json=body)).json() for body in bodies]
        with serving.engine.held():
            tasks = [
                asyncio.create_task(client.post("/generate", json={**body, "stream": number % 2 == 1}))
                for number, body in enumerate(bodies)
            ]
            while serving.engine.stats().waiting < 32:
                await asyncio.sleep(0.01)
        together = await asyncio.gather(*tasks)
    for number, (expected, response) in enumerate(zip(alone, together, strict=True)):
        if number % 2 == 0:
            assert response.json() == near(expected), number
            continue
        found = events(response.text)
        tokens = [t["id"] for t in expected["details"]["tokens"]]
        assert [one["token"]["id"] for one in found] == tokens, number
        assert "".join(one["token"]["text"] for one in found) == expected["generated_text"]
        assert found[-1]["mera"] == near(expected["mera"]), number
    assert len({json.dumps(one) for one in alone}) == 32
    assert len({one["generated_text"] for one in alone}) > 12
    assert {one["details"]["finish_reason"] for one in alone} >= {"length", "stop_sequence"}
