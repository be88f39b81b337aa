"""Stopping: readiness goes first, what runs finishes or is told; a generation loop that dies takes the process with it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.loading import Serving, load
from mera_server.settings import Settings

from merasteer.errors import EngineFailed

Ready = Callable[[FastAPI], FastAPI]
Serve = Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]
SLOW = """
import sys, time, os
from pathlib import Path
from merasteer.engine.engine import Engine
prepare = Engine.on_prepare
def on_prepare(engine):
    time.sleep(0.03)
    if Path(os.environ["CRASH"]).exists():
        raise MemoryError("no memory is left")
    prepare(engine)
Engine.on_prepare = on_prepare
from mera_server.cli import main
sys.exit(main(["serve", *sys.argv[1:]]))
"""


def until_ready(address: str) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(f"{address}/health/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stream(tokens: int) -> dict[str, Any]:
    return {"inputs": "Message:", "parameters": {"max_new_tokens": tokens}, "stream": True}


def test_sigterm_turns_readiness_off_refuses_and_lets_what_runs_finish(
    settings: Settings, mera_serve: Serve, tmp_path: Path
) -> None:
    options = ("--port", "0", "--store", str(tmp_path))
    with mera_serve(*options, code=SLOW, CRASH=str(tmp_path / "crash")) as (process, address):
        until_ready(address)
        with httpx.stream("POST", f"{address}/generate", json=stream(80)) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.4)
            ready = httpx.get(f"{address}/health/ready")
            assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
            assert httpx.get(f"{address}/health/live").status_code == 200
            refused = httpx.post(f"{address}/generate", json=stream(1))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            assert refused.headers["retry-after"]
            events = [json.loads(line[5:]) for line in lines if line]
        assert events[-1]["details"]["generated_tokens"] == len(events) + 1
        assert events[-1]["mera"]["decision"] == "off"
        assert process.wait(20) == 0


def test_what_outlives_the_drain_is_told(settings: Settings, mera_serve: Serve, tmp_path: Path) -> None:
    options = ("--port", "0", "--store", str(tmp_path), "--drain-timeout", "0.3")
    with mera_serve(*options, code=SLOW, CRASH=str(tmp_path / "crash")) as (process, address):
        until_ready(address)
        with httpx.stream("POST", f"{address}/generate", json=stream(900)) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            events = [json.loads(line[5:]) for line in lines if line]
        assert time.monotonic() - start < 5
        assert events[-1]["error"]["code"] == "engine_failed"
        assert "stopped before the answer" in events[-1]["error"]["message"]
        assert process.wait(20) == 0


@pytest.mark.slow
def test_a_second_signal_waits_for_nothing(settings: Settings, mera_serve: Serve, tmp_path: Path) -> None:
    options = ("--port", "0", "--store", str(tmp_path), "--drain-timeout", "300")
    with mera_serve(*options, code=SLOW, CRASH=str(tmp_path / "crash")) as (process, address):
        until_ready(address)
        with httpx.stream("POST", f"{address}/generate", json=stream(900)) as response:
            next(response.iter_lines())
            for _ in range(2):
                process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
            process.wait(10)


def test_a_crash_answers_everybody_and_ends_the_process(settings: Settings, mera_serve: Serve, tmp_path: Path) -> None:
    options = ("--port", "0", "--store", str(tmp_path), "--max-requests", "2", "--max-waiting", "4")
    with mera_serve(*options, code=SLOW, CRASH=str(tmp_path / "crash")) as (process, address):
        until_ready(address)
        answers: list[httpx.Response] = []
        body = {"inputs": "Message:", "parameters": {"max_new_tokens": 900}}

        def ask() -> None:
            answers.append(httpx.post(f"{address}/generate", json=body, timeout=30))

        callers = [threading.Thread(target=ask) for _ in range(6)]  # two run, four wait
        for caller in callers:
            caller.start()
        time.sleep(0.5)
        start = time.monotonic()
        (tmp_path / "crash").touch()
        for caller in callers:
            caller.join()
        assert time.monotonic() - start < 3
        assert [(one.status_code, one.json()["error"]["code"]) for one in answers] == [(503, "engine_failed")] * 6
        assert process.wait(20) == 1
        assert process.stderr is not None
        told = process.stderr.read()
        assert [line for line in told.splitlines() if line.startswith("mera: engine: the generation loop died")]


@pytest.fixture
def alone(settings: Settings) -> Iterator[Serving]:
    """An engine of its own, which may be broken."""
    found = load(settings.model_copy(update={"cache_tokens": 2048}))
    yield found
    found.engine.stop()


async def test_memory_that_runs_out_in_a_step_is_an_error_for_everybody_and_ends_readiness(
    settings: Settings, alone: Serving, ready_app: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[BaseException] = []
    app = ready_app(create_app(settings, loader=lambda _: alone, on_failure=failures.append))

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(alone.engine._steering, "finish", full)
    watching = asyncio.create_task(app.state.runtime.watch())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        body = {"inputs": "Message:", "parameters": {"max_new_tokens": 9}}
        answers = await asyncio.gather(*(client.post("/generate", json=body) for _ in range(3)))
        for answer in (*answers, await client.get("/health/ready"), await client.post("/generate", json=body)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_failed")
        assert (await client.get("/health/live")).status_code == 200
        for _ in range(100):
            if failures:
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.6)  # it is told once
    watching.cancel()
    assert [type(failure) for failure in failures] == [EngineFailed]


async def test_a_drain_waits_for_bodies_that_still_come(app: FastAPI) -> None:
    """A request counts from its first byte."""
    flights = app.state.runtime.flights
    arrived = asyncio.Event()

    async def late() -> Any:
        yield b'{"inputs": "Message:",'
        await arrived.wait()
        yield b'"parameters": {"max_new_tokens": 1}}'

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        asked = asyncio.create_task(client.post("/generate", content=late()))
        while not len(flights):
            await asyncio.sleep(0.001)
        flights.draining = True
        assert not await flights.ended(0.05)
        assert (await client.post("/generate", content=b"{}")).status_code == 503
        arrived.set()
        assert (await asked).status_code == 200
        assert await flights.ended(1)
