"""The open loop: requests that come when they come, some of whose callers leave, and a ledger of what became of each."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from .answers import counted, difference, in_order
from .asks import REFUSED, Ask, Refused
from .reloads import Defaults

MALFORMED = 0.05
LEAVING = 0.3  # some answers are faster than the caller who meant to leave
LEFT = 499  # what the server counts where the caller left first

Alone = dict[Ask, dict[str, list[Any]]]  # request, digest of the task's default or "" -> the answer alone


@dataclass(frozen=True)
class Leave:
    """When the caller goes: this long after the request was sent, or behind this many events of its stream."""

    seconds: float = math.inf
    events: int = 0


@dataclass(eq=False)
class Exchange:
    """One request under way. status None: no head of an answer has come; left: the caller went first."""

    id: str
    ask: Ask | Refused
    due: float
    begun: float = field(default_factory=time.monotonic)
    status: int | None = None
    parts: list[Any] = field(default_factory=list)
    left: bool = False
    fault: str = ""


@dataclass
class Ledger:
    """What the callers saw. expected: what the counters must hold for whole answers; left: those who went before the end."""

    statuses: dict[str, tuple[str, int]] = field(default_factory=dict)
    left: dict[str, Ask] = field(default_factory=dict)
    expected: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.statuses) + len(self.left) + len(self.lost)


class Load:
    """Sends requests and judges their answers by those that were given alone."""

    def __init__(self, http: httpx.AsyncClient, defaults: Defaults) -> None:
        self.ledger, self.alone = Ledger(), Alone()
        self._http, self._defaults, self._sent = http, defaults, 0
        self._times: dict[Ask, float] = {}  # how long the answer alone took

    async def ask_alone(self, asks: Sequence[Ask]) -> None:
        """One after the other, of the artifacts that are served now. Such an answer must not change from one time to the next."""
        for ask in asks:
            found = await self._exchange(Exchange(self._id(), ask, time.monotonic()))
            assert (found.status, found.fault) == (200, ""), (ask, found)
            self._times[ask] = time.monotonic() - found.begun
            self.alone.setdefault(ask, {}).setdefault(self._defaults.now(ask.task), in_order(found.parts))
            self._judge(found)

    async def run(self, pool: Sequence[Ask], rng: random.Random, rate: float, seconds: float) -> None:
        """The load: arrivals of a Poisson process, whatever the server does. Returns when each has come to its end."""
        steady = [ask for ask in pool if self._steady(ask)]
        due = begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while (due := due + rng.expovariate(rate)) < begun + seconds:
                ask, leave = self._draw(pool, steady, rng)
                await asyncio.sleep(due - time.monotonic())
                group.create_task(self._one(ask, due, leave))

    def _draw(self, pool: Sequence[Ask], steady: Sequence[Ask], rng: random.Random) -> tuple[Ask | Refused, Leave]:
        kind = rng.random()
        if kind < MALFORMED:
            return rng.choice(REFUSED), Leave()
        if kind > MALFORMED + LEAVING:
            return rng.choice(pool), Leave()
        ask = rng.choice(steady)
        if ask.streams and rng.random() < 0.7:
            events = min(map(len, self.alone[ask].values()))
            return ask, Leave(events=rng.randint(1, max(1, events - 1)))
        return ask, Leave(seconds=rng.uniform(0, 0.8 * self._times[ask]))

    def _steady(self, ask: Ask) -> bool:
        """Whether a caller may leave: what is counted for the whole answer must not depend on when it was planned.

        Nor may it be a stream of several choices: those that had ended are counted, and nobody is told which.
        """
        told = [counted(ask, parts) for parts in self.alone[ask].values()]
        return all(other == told[0] for other in told) and not (ask.streams and ask.choices > 1)

    async def _one(self, ask: Ask | Refused, due: float, leave: Leave) -> None:
        found = await self._exchange(Exchange(self._id(), ask, due), leave)
        self._judge(found)

    async def _exchange(self, found: Exchange, leave: Leave = Leave()) -> Exchange:
        """The request, and its answer as far as the caller stayed. Only what the server has been sent is left."""
        sent = asyncio.Event()
        work = asyncio.create_task(self._talk(found, sent, leave.events))
        if leave.seconds < math.inf:
            waiting = asyncio.create_task(sent.wait())
            await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            await asyncio.wait({work}, timeout=leave.seconds)
            found.left = work.cancel()
        await asyncio.wait({work})
        if not work.cancelled() and (error := work.exception()) is not None:
            found.fault = repr(error)
        return found

    async def _talk(self, found: Exchange, sent: asyncio.Event, events: int) -> None:
        async def trace(name: str, _info: Any) -> None:
            if name == "http11.send_request_body.complete":
                sent.set()

        given: dict[str, Any] = {"headers": {"x-request-id": found.id}, "extensions": {"trace": trace}}
        async with self._http.stream("POST", found.ask.route, content=found.ask.content, **given) as response:
            if not response.headers["content-type"].startswith("text/event-stream"):
                found.parts = [json.loads(await response.aread())]
                found.status = response.status_code
                return
            found.status = response.status_code
            async for line in response.aiter_lines():
                if line:
                    said = line.removeprefix("data:").strip()
                    found.parts.append(said if said == "[DONE]" else json.loads(said))
                if events and len(found.parts) == events:
                    found.left = True
                    return

    def _judge(self, found: Exchange) -> None:
        ledger, ask = self.ledger, found.ask
        wrong = "" if found.fault else self._wrong(found)
        if wrong:
            ledger.wrong.append(f"{found.id} {ask.route} {wrong} {ask.content.decode(errors='replace')[:300]}")
        if found.left and isinstance(ask, Ask):
            ledger.left[found.id] = ask
            ledger.kinds["left"] += 1
        elif found.status is None or found.fault:
            ledger.lost.append(f"{found.id} {ask.route} {found.fault}")
        else:
            ledger.statuses[found.id] = (ask.route, found.status)
            ledger.seconds.append(time.monotonic() - found.due)
            ledger.kinds["malformed" if isinstance(ask, Refused) else ask.kind] += 1
            if isinstance(ask, Ask) and not wrong:
                ledger.expected += counted(ask, found.parts)

    def _wrong(self, found: Exchange) -> str:
        """What is wrong with the answer, or with as much of it as came."""
        ask = found.ask
        if isinstance(ask, Refused):
            told = (found.status, found.parts[0].get("error", {}).get("code"))
            return "" if told == (ask.status, ask.code) else f"{told} for {(ask.status, ask.code)}"
        if found.left and found.status is None:
            return ""
        if found.status != 200:
            return f"{found.status} {found.parts}"
        served = self._defaults.between(ask.task, found.begun, time.monotonic())
        told_by = [self._unlike(found, self.alone[ask][digest]) for digest in served]
        return "" if None in told_by else f"differs from each of {dict(zip(served, told_by, strict=True))}"

    def _unlike(self, found: Exchange, alone: list[Any]) -> str | None:
        if not found.left:
            return difference(in_order(found.parts), alone)
        return difference(found.parts, alone[: len(found.parts)])

    def _id(self) -> str:
        self._sent += 1
        return f"soak-{self._sent}"
