"""What goes wrong around a server: clocks that jump, scrapers that are absent, slow or many, collectors and memory that are not there."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from mera_server import loading
from mera_server.settings import Settings

from merasteer import demo
from merasteer.errors import InvalidInput

Listening = Callable[[FastAPI], AbstractContextManager[tuple[str, int]]]
Serve = Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]
HOUR = 3600.0
ONE = {"inputs": "Message:", "parameters": {"max_new_tokens": 1}}
LONG = {"inputs": "Message:", "parameters": {"max_new_tokens": 40}, "stream": True}


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def until_ready(address: str) -> None:
    until(lambda: httpx.get(f"{address}/health/ready").status_code == 200, 60)


def samples(text: str) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


# --- clocks ------------------------------------------------------------------------------------------------------------------------

JUMPING = """
import os, sys, time
from pathlib import Path
from merasteer.engine.engine import Engine
clock, clock_ns, prepare = time.time, time.time_ns, Engine.on_prepare
def shift():
    return float(Path(os.environ["CLOCK"]).read_text() or 0)
def on_prepare(engine):
    time.sleep(0.01)
    prepare(engine)
time.time = lambda: clock() + shift()
time.time_ns = lambda: clock_ns() + int(1e9 * shift())
Engine.on_prepare = on_prepare
from mera_server.cli import main
sys.exit(main(["serve", *sys.argv[1:]]))
"""


def publish(store: Path, task: str, stamp: float) -> None:
    """Puts the demo's artifact of a task into a store, its files as old as the clock says."""
    slug = next(demo.store_dir().iterdir())
    shutil.copytree(slug / task, store / slug.name / task)
    for path in (store / slug.name / task).rglob("*"):
        os.utime(path, (stamp, stamp), follow_symlinks=False)


def test_a_wall_clock_that_jumps_changes_nothing_but_the_time_in_the_log(
    settings: Settings, mera_serve: Serve, tmp_path: Path
) -> None:
    """Deadlines, rates, the watch over the stores and the metrics go by a clock that only grows."""
    store, clock = tmp_path / "store", tmp_path / "clock"
    clock.write_text("0")
    options = ("--port", "0", "--store", str(store), "--reload-seconds", "0.2", "--log-format", "json")
    limits = ("--create-store", "--request-timeout", "2", "--rate-limit", "0.001", "--rate-burst", "6")
    with mera_serve(*options, *limits, code=JUMPING, CLOCK=str(clock)) as (process, address):
        assert process.stderr is not None
        log: list[str] = []
        reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
        reader.start()
        until_ready(address)

        def jump(hours: float) -> None:
            """In one step: the server reads the file at any moment."""
            (tmp_path / "next").write_text(str(hours * HOUR))
            (tmp_path / "next").replace(clock)

        for number, hours in enumerate((7.0, -9.0)):
            with httpx.stream("POST", f"{address}/generate", json=LONG) as response:  # a request under way
                lines = response.iter_lines()
                next(lines)
                jump(hours)
                events = [json.loads(line[5:]) for line in lines if line]
            assert events[-1]["details"]["generated_tokens"] == len(events) + 1 == 40
            start = time.monotonic()
            with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as trickle:
                trickle.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
                answer = http.client.HTTPResponse(trickle)  # to a request whose body never comes
                answer.begin()
                assert json.loads(answer.read())["error"]["code"] == "deadline_exceeded"
            assert 1.5 < time.monotonic() - start < 20
            assert httpx.post(f"{address}/generate", json=ONE).status_code == 200
            publish(store, ("demo_spam", "demo_desk_a")[number], time.time() + hours * HOUR)
            until(lambda: sum('"reloaded: ' in line for line in log) > number, 10)  # noqa: B023

        refused = httpx.post(f"{address}/generate", json=ONE)  # six have been paid for, whatever the hour
        assert refused.json()["error"]["code"] == "rate_limited"
        assert 1 <= int(refused.headers["retry-after"]) <= 1000
        found = samples(httpx.get(f"{address}/metrics").text)
        assert found['mera_requests_total{route="/generate",status="200"}'] == 4
        assert found['mera_requests_total{route="/generate",status="503"}'] == 2
        for name in ("time_to_first_token", "queue", "inter_token"):
            assert 0 <= found[f"mera_{name}_seconds_sum"] < 100, name
        for outcome in ("answered", "refused", "failed"):
            assert 0 <= found[f'mera_request_duration_seconds_sum{{outcome="{outcome}"}}'] < 100, outcome
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        reader.join(10)
    told = [json.loads(line) for line in log]
    statuses = [line["status"] for line in told if line["logger"] == "mera.access" and line["route"] == "/generate"]
    assert statuses == [200, 503, 200, 200, 503, 200, 429]  # in the order in which it happened
    assert max(line["time"] for line in told) > told[-1]["time"]  # by the wall clock, which went back


# --- those who measure --------------------------------------------------------------------------------------------------------------


def test_no_scraper_a_slow_one_one_that_leaves_and_many_at_once_disturb_nobody(
    listening: Listening, app: FastAPI
) -> None:
    scrape = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    with listening(app) as address:
        url = f"http://{address[0]}:{address[1]}"

        def texts(number: int) -> list[str]:
            bodies = ({"inputs": f"Desk {i}.", "parameters": {"max_new_tokens": 20}} for i in range(number))
            return [httpx.post(f"{url}/generate", json=body, timeout=20).json()["generated_text"] for body in bodies]

        alone = texts(6)  # nobody has scraped yet
        slow, leaving = ([socket.create_connection(address) for _ in range(number)] for number in (2, 8))
        for connection in slow:
            connection.setblocking(False)
            connection.send(400 * scrape)  # megabytes of answers that it never reads
        for connection in leaving:
            connection.sendall(scrape)
            connection.close()
        found: list[int] = []
        many = [
            threading.Thread(target=lambda: found.append(httpx.get(f"{url}/metrics", timeout=20).status_code))
            for _ in range(30)
        ]
        for thread in many:
            thread.start()
        assert texts(6) == alone
        for thread in many:
            thread.join()
        assert found == [200] * 30
        counts = samples(httpx.get(f"{url}/metrics").text)  # a scraper that comes back misses nothing
        assert counts['mera_requests_total{route="/generate",status="200"}'] == 12
        assert (counts["mera_requests_running"], counts["mera_requests_waiting"]) == (0, 0)
        for connection in slow:
            connection.close()


SILENT = """
import sys, threading, types
exporter = types.ModuleType("opentelemetry.exporter.otlp.proto.http.trace_exporter")
class OTLPSpanExporter:
    def __init__(self, endpoint): pass
    def export(self, spans): threading.Event().wait(60)
    def shutdown(self): threading.Event().wait(60)
    def force_flush(self, timeout_millis=0): return False
exporter.OTLPSpanExporter = OTLPSpanExporter
for name in ("exporter", "exporter.otlp", "exporter.otlp.proto", "exporter.otlp.proto.http"):
    sys.modules["opentelemetry." + name] = types.ModuleType("opentelemetry." + name)
sys.modules[exporter.__name__] = exporter
from mera_server.cli import main
sys.exit(main(["serve", *sys.argv[1:]]))
"""


def test_a_collector_that_never_answers_does_not_hold_the_end_up(mera_serve: Serve, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk.trace", reason="the extra `otel` is not installed")
    options = ("--port", "0", "--store", str(tmp_path), "--otel-endpoint", "http://127.0.0.1:4318/v1/traces")
    with mera_serve(*options, code=SILENT) as (process, address):
        until_ready(address)
        assert httpx.post(f"{address}/generate", json=ONE).status_code == 200  # a span that is to be sent
        process.send_signal(signal.SIGTERM)
        assert process.wait(25) == 0


# --- memory ------------------------------------------------------------------------------------------------------------------------

FULL = """
import os, sys, torch
from pathlib import Path
from merasteer.engine.engine import Engine
start = Engine.start
def full(*_):
    if Path(os.environ["FULL"]).exists():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
def started(engine):
    engine.loaded.model.get_submodule("model.layers.1").register_forward_pre_hook(full)
    start(engine)
Engine.start = started
from mera_server.cli import main
sys.exit(main(["serve", *sys.argv[1:]]))
"""


def test_memory_that_runs_out_in_a_forward_pass_ends_the_process_with_a_line(mera_serve: Serve, tmp_path: Path) -> None:
    full = tmp_path / "full"
    with mera_serve("--port", "0", "--store", str(tmp_path), code=FULL, FULL=str(full)) as (process, address):
        until_ready(address)
        assert httpx.post(f"{address}/generate", json=ONE).status_code == 200
        full.touch()
        answer = httpx.post(f"{address}/generate", json=ONE)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_failed")
        assert "out of memory" in answer.json()["error"]["message"]
        assert process.wait(30) == 1
        assert process.stderr is not None
        assert [line for line in process.stderr if line.startswith("mera: engine: the generation loop died")]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to ..."
        ),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_memory_that_runs_out_while_the_engine_starts_names_what_to_lower(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr("merasteer.engine.line.Steering", full)
    with pytest.raises(InvalidInput, match=r"^memory: that of cpu .* lower cache_tokens, max_policies or max_requests"):
        loading.load(settings)


def test_a_cache_that_memory_does_not_hold_names_what_to_lower(settings: Settings) -> None:
    with pytest.raises(InvalidInput, match=r"^memory: that of cpu .* lower cache_tokens, max_policies or max_requests"):
        loading.load(settings.model_copy(update={"cache_tokens": 2**40}))


def test_another_fault_while_the_engine_starts_is_not_called_want_of_memory(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("merasteer.engine.line.Steering", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        loading.load(settings)


# --- connections -------------------------------------------------------------------------------------------------------------------

FEW_FILES = """
import os, resource, sys
import mera_server.process as process
process._HEAD_SECONDS = 1.0
resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
from mera_server.cli import main
sys.exit(main(["serve", *sys.argv[1:]]))
"""


def test_more_half_open_connections_than_files_may_be_open_hold_up_and_then_let_go(
    mera_serve: Serve, tmp_path: Path
) -> None:
    with mera_serve("--port", "0", "--store", str(tmp_path), code=FEW_FILES) as (process, address):
        assert process.stderr is not None
        log: list[str] = []
        threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True).start()
        until_ready(address)
        place = ("127.0.0.1", int(address.rpartition(":")[2]))
        half = [socket.create_connection(place) for _ in range(300)]
        for connection in half:
            connection.sendall(b"POST /generate HT")
        assert httpx.post(f"{address}/generate", json=ONE, timeout=30).status_code == 200  # in its turn
        for connection in half:
            connection.close()
        assert httpx.post(f"{address}/generate", json=ONE).status_code == 200
        assert httpx.get(f"{address}/health/ready").status_code == 200
        assert any("Too many open files" in line for line in log), "the limit was not reached: the test shows nothing"
