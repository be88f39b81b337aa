"""A server under a mixed load for twenty minutes: no wrong answer, none lost, nothing leaked, and metrics that tell the truth.

Requests come when they come (a seeded Poisson process). Each answer is compared with the same request's answer alone, of the artifact
that was its task's default; a quarter of the callers mean to leave, one request in twenty is malformed, artifacts come and go.

What is counted: a request is sent once its body is. The server must have exactly one line in its log for it, and one count in its
metrics: with the status that the caller saw, or for a caller who left 499 or 200, whichever the log has, by the race.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from .answers import counted
from .asks import SPAM, pool
from .conftest import Server
from .load import LEFT, Ledger, Load
from .reloads import TASKS, Defaults, Publisher, versions

SEED = 6
RATE = float(os.environ.get("MERA_SOAK_RATE", "15"))  # requests a second
SECONDS = float(os.environ.get("MERA_SOAK_SECONDS", "1200"))
WARM = 2_000  # requests until resident memory has found its size
GROWTH = 0.03
EVERY = 30.0  # seconds between two changes of the store
SAMPLE = 2.0  # seconds between two looks at memory and metrics

Memory = list[tuple[int, int]]  # requests answered so far, bytes


async def samples(http: httpx.AsyncClient) -> dict[str, float]:
    text = (await http.get("/metrics")).text
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


async def watch(server: Server, http: httpx.AsyncClient, load: Load, found: Memory) -> None:
    """Looks at memory and metrics as a monitor would, for ever."""
    while True:
        assert 0 <= (await samples(http))["mera_cache_used_ratio"] <= 1
        found.append((len(load.ledger), server.resident()))
        await asyncio.sleep(SAMPLE)


async def idle(http: httpx.AsyncClient, sent: int) -> dict[str, float]:
    """The metrics once all that was sent is counted, and nothing runs, waits or holds cache."""
    gauges = ("mera_requests_running", "mera_requests_waiting", "mera_cache_used_ratio")
    deadline = time.monotonic() + 10
    while True:
        told = await samples(http)
        left = {name: told[name] for name in gauges} | {"not counted": sent - durations(told)}
        if not any(left.values()):
            return told
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.05)


def durations(told: dict[str, float]) -> float:
    """How many requests the histogram of durations holds, whatever their outcome."""
    return sum(family(told, "mera_request_duration_seconds_count").values())


def family(told: dict[str, float], name: str) -> dict[str, float]:
    return {sample: value for sample, value in told.items() if sample.startswith(name)}


def check_counts(server: Server, load: Load, told: dict[str, float]) -> None:
    """Log and metrics against the ledger. Exactly."""
    ledger, log = load.ledger, server.answered()
    for one, answer in ledger.statuses.items():
        assert log[one] == [answer], (one, answer, log[one])
    expected = ledger.expected.copy()
    for one, ask in ledger.left.items():
        [(route, status)] = log[one]
        assert (route, status) in {(ask.route, 200), (ask.route, LEFT)}
        if status == 200:
            expected += counted(ask, next(iter(load.alone[ask].values())))
    asked = [*ledger.statuses, *ledger.left]
    requests = Counter(log[one][0] for one in asked)
    shown = family(told, "mera_requests_total")
    assert shown == {
        f'mera_requests_total{{route="{route}",status="{status}"}}': n for (route, status), n in requests.items()
    }
    assert sum(shown.values()) == durations(told) == len(asked)
    assert family(told, "mera_decisions_total") == family(dict(expected), "mera_decisions_total")
    assert {name: told[name] for name in expected} == expected


def growth(memory: Memory, warm: int) -> tuple[float, float]:
    """Resident memory behind the warm-up and at the end, in bytes: medians over a tenth of the samples between."""
    sizes = [size for answered, size in memory if answered > warm]
    share = max(1, len(sizes) // 10)
    return statistics.median(sizes[:share]), statistics.median(sizes[-share:])


async def soak(
    server: Server, scratch: Path, seconds: float, size: int
) -> tuple[Load, dict[str, float], dict[str, Any]]:
    """The load behind it, the metrics at its end, and the report."""
    rng, memory, defaults = random.Random(SEED), Memory(), Defaults()
    known, asks = versions(scratch), pool(rng, size)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2)  # the server's is 5 s
    async with httpx.AsyncClient(base_url=server.address, timeout=60, limits=limits) as http:
        load, publisher = Load(http, defaults), Publisher(http, server.store, defaults, known)
        for version in range(len(known[SPAM])):
            for task in TASKS:
                await publisher.publish(task, version)
            await publisher.collect(tell=True)
            await load.ask_alone([ask for ask in asks if version == 0 or ask.task in TASKS])
        before, begun = len(load.ledger), time.monotonic()
        others = [
            asyncio.create_task(publisher.run(min(EVERY, seconds / 4))),
            asyncio.create_task(watch(server, http, load, memory)),
        ]
        load.ledger.seconds.clear()
        load.ledger.kinds.clear()
        await load.run(asks, rng, RATE, seconds)
        took, sent = time.monotonic() - begun, len(load.ledger) - before
        for other in others:
            other.cancel()
            with suppress(asyncio.CancelledError):
                await other
        told = await idle(http, len(load.ledger) - len(load.ledger.lost))
    return load, told, report(load.ledger, memory, before, sent, took, publisher.reloads)


def report(ledger: Ledger, memory: Memory, before: int, sent: int, seconds: float, reloads: int) -> dict[str, Any]:
    begin, end = growth(memory, before + min(WARM, sent // 3))
    times = statistics.quantiles(ledger.seconds, n=100)
    return {
        "requests": sent,
        "alone": before,
        "kinds": dict(sorted(ledger.kinds.items())),
        "requests_per_second": round(sent / seconds, 2),
        "latency_p50_ms": round(1000 * times[49], 1),
        "latency_p95_ms": round(1000 * times[94], 1),
        "reloads": reloads,
        "wrong": len(ledger.wrong),
        "lost": len(ledger.lost),
        "resident_begin_mb": round(begin / 1e6, 1),
        "resident_end_mb": round(end / 1e6, 1),
        "resident_growth": round(end / begin - 1, 4),
        "resident_mb": [round(size / 1e6) for _, size in memory[:: max(1, len(memory) // 20)]],
    }


@pytest.mark.parametrize("seconds", [5.0, pytest.param(SECONDS, marks=pytest.mark.slow)])
async def test_soak(server: Server, tmp_path: Path, seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    load, told, figures = await soak(server, tmp_path / "scratch", seconds, 30 if seconds < 60 else 240)
    ledger = load.ledger
    with capsys.disabled():
        sys.stdout.write(f"\nsoak, {seconds:g} s: {json.dumps(figures)}\n")
    if name := os.environ.get("MERA_SOAK_REPORT"):
        Path(name).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    assert not ledger.wrong, "\n".join(ledger.wrong[:20])
    assert not ledger.lost, "\n".join(ledger.lost[:20])
    check_counts(server, load, told)
    assert told["mera_probes_rejected"] == 0
    assert not server.complaints()
    assert figures["requests"] > 0.9 * RATE * seconds
    assert figures["reloads"] >= max(1, 0.9 * seconds / EVERY)
    assert figures["kinds"]["left"] >= 0.1 * figures["requests"]
    if seconds >= 1200:
        assert figures["requests"] >= 10_000
        assert figures["kinds"]["left"] >= 0.2 * figures["requests"]
        assert figures["kinds"]["malformed"] >= 0.045 * figures["requests"]
        assert figures["resident_growth"] < GROWTH
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
