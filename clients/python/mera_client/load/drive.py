"""Sends a mix to a server and takes the time of every request.

Closed loop: `concurrency` callers, each asking again when answered: how much the server can do. Open loop: requests arrive at `rate`
per second whether it keeps up or not (a Poisson process), and a latency counts from the planned arrival: what callers feel.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from mera_client._async_client import AsyncClient
from mera_client._errors import InvalidInput, MeraError
from mera_client.load.mix import Ask, Entry, asks

UNFINISHED = "unfinished"  # begun, and not answered when the run ended
NOT_SENT = "not_sent"  # due, and the limit of open requests reached


@dataclass(frozen=True)
class Load:
    """count, duration (seconds): the run ends with the first of them. concurrency or rate. in_flight: open requests at most,
    for rate. grace: seconds that open requests get at the end."""

    concurrency: int | None = None
    rate: float | None = None
    count: int = 200
    duration: float = 60.0
    in_flight: int = 256
    grace: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise InvalidInput("load: give either --concurrency or --rate")
        for name in ("concurrency", "rate", "count", "duration", "in_flight"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidInput(f"--{name.replace('_', '-')}: {value} is out of range; give a number above 0")


@dataclass(frozen=True)
class Sample:
    """One request. seconds: to the last byte; first: to the first token, None but in streams. gaps: between two tokens.

    error: a code, None when answered. message: what came with it.
    """

    name: str
    seconds: float
    first: float | None = None
    gaps: tuple[float, ...] = ()
    inputs: int = 1
    tokens: int = 0
    decisions: tuple[str, ...] = ()
    error: str | None = None
    message: str = ""


@dataclass(frozen=True)
class Run:
    """What came of it. seconds: from the first request to the last answer."""

    samples: tuple[Sample, ...]
    seconds: float
    interrupted: bool


async def drive(client: AsyncClient, mix: tuple[Entry, ...], load: Load) -> Run:
    """The samples of one run. Cancelling it ends the run early and keeps what was measured."""
    plan = islice(asks(mix, load.seed), load.count)
    samples: list[Sample] = []
    start = time.perf_counter()
    running = asyncio.create_task(
        _closed(client, plan, load, samples) if load.rate is None else _open(client, plan, load, samples)
    )
    interrupted = False
    try:
        await asyncio.wait([running], timeout=load.duration + load.grace)
    except asyncio.CancelledError:
        interrupted = True
        if (task := asyncio.current_task()) is not None:
            task.uncancel()  # heeded: what follows may await
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    return Run(tuple(samples), time.perf_counter() - start, interrupted)


async def _closed(client: AsyncClient, plan: Iterator[Ask], load: Load, samples: list[Sample]) -> None:
    end = time.perf_counter() + load.duration

    async def caller() -> None:
        while time.perf_counter() < end and (ask := next(plan, None)) is not None:
            await _timed(client, ask, time.perf_counter(), samples)

    async with asyncio.TaskGroup() as callers:
        for _ in range(load.concurrency or 1):
            callers.create_task(caller())


async def _open(client: AsyncClient, plan: Iterator[Ask], load: Load, samples: list[Sample]) -> None:
    start, free = time.perf_counter(), load.in_flight

    def back(_: asyncio.Task[None]) -> None:
        nonlocal free
        free += 1

    async with asyncio.TaskGroup() as requests:
        async for ask, due in _arrivals(plan, load, start):
            if not free:
                samples.append(Sample(ask.entry.name, 0.0, inputs=len(ask.inputs), error=NOT_SENT))
                continue
            free -= 1
            requests.create_task(_timed(client, ask, due, samples)).add_done_callback(back)


async def _arrivals(plan: Iterator[Ask], load: Load, start: float) -> AsyncIterator[tuple[Ask, float]]:
    """Each request when it is due, with that time."""
    draw, due = random.Random(load.seed), start
    for ask in plan:
        due += draw.expovariate(load.rate or 1.0)
        if due > start + load.duration:
            return
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield ask, due


async def _timed(client: AsyncClient, ask: Ask, since: float, samples: list[Sample]) -> None:
    """Adds one sample, whatever happens."""
    found: dict[str, Any] = {"error": UNFINISHED}
    try:
        found = await _ask(client, ask, since)
    except MeraError as error:
        found = {"error": error.code, "message": error.message}
    finally:
        samples.append(Sample(ask.entry.name, time.perf_counter() - since, inputs=len(ask.inputs), **found))


async def _ask(client: AsyncClient, ask: Ask, since: float) -> dict[str, Any]:
    entry, steering = ask.entry, dict(ask.entry.steering) or None
    if entry.kind == "classify":
        override = {key: value for key, value in entry.steering.items() if key != "task"}
        answer = await client.classify(entry.steering["task"], ask.inputs, steering=override or None)
        return {
            "tokens": answer.usage.generated_tokens,
            "decisions": tuple(result.decision for result in answer.results),
        }
    options: Mapping[str, Any] = {**entry.options, "seed": ask.seed, "steering": steering}
    if entry.kind == "stream":
        return await _stream(client, ask, options, since)
    generation = await client.generate(ask.inputs[0], **options)
    return {"tokens": generation.details.generated_tokens, "decisions": (generation.mera.decision,)}


async def _stream(client: AsyncClient, ask: Ask, options: Mapping[str, Any], since: float) -> dict[str, Any]:
    times: list[float] = []
    decisions: tuple[str, ...] = ()
    async with aclosing(client.generate_stream(ask.inputs[0], **options)) as events:
        async for event in events:
            times.append(time.perf_counter())
            decisions = () if event.mera is None else (event.mera.decision,)
    gaps = tuple(later - earlier for earlier, later in pairwise(times))
    return {"first": times[0] - since, "gaps": gaps, "tokens": len(times), "decisions": decisions}
