"""Which inference requests are let in, how long they may take, and how all of them end when the server stops.

Each is a `Flight` from its first byte to its last. One that outlives the request timeout, a slow body or a slow reader included, ends
with `deadline_exceeded`; when the server stops, new ones are refused and what still runs at the end of the drain is cut. While the
engine's queue is full, they are refused before anything of them is read, and told when to come back.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mera_server.errors import error_response
from mera_server.middleware import failed, infers
from mera_server.room import Room
from mera_server.told import event_of, status_of
from merasteer.errors import DeadlineExceeded, MeraError, NotReady, Overloaded

__all__ = ["Flights", "Running"]

_LAST_WORDS = 2.0  # seconds in which a caller takes the error that ends a stream, or is given up


@dataclass(eq=False)
class Flight:
    """A request under way. error: what ends it, None for its deadline."""

    timeout: asyncio.Timeout
    error: MeraError | None = None


class Flights:
    """The inference requests under way. Of one event loop."""

    def __init__(self) -> None:
        self.draining = False
        self._open: set[Flight] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, flight: Flight) -> None:
        self._open.add(flight)

    def remove(self, flight: Flight) -> None:
        self._open.discard(flight)

    def cut(self, error: MeraError) -> None:
        """Ends all of them with `error`."""
        for flight in list(self._open):
            flight.error = error
            with suppress(RuntimeError):  # its deadline was first
                flight.timeout.reschedule(asyncio.get_running_loop().time())

    async def ended(self, seconds: float) -> bool:
        """Whether all of them ended by themselves in that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._open:
                    await asyncio.sleep(0.02)
        return not self._open


class Running:
    """Puts every inference request under its deadline, and refuses new ones while the server drains or there is no room."""

    def __init__(self, app: ASGIApp, flights: Flights, room: Room, seconds: float) -> None:
        self.app = app
        self.flights, self.room, self.seconds = flights, room, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not infers(scope):
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, self.room)
        flight: Flight | None = None
        try:
            self._check()
            async with asyncio.timeout(self.seconds) as timeout:
                flight = Flight(timeout)
                self.flights.add(flight)
                await self.app(scope, receive, answer.send)
        except (NotReady, Overloaded) as error:  # refusals, no failures: nothing for the error log
            await error_response(error, scope["path"])(scope, receive, answer.send)
        except TimeoutError:
            if flight is None or not flight.timeout.expired():
                raise
            await answer.end(scope, flight.error or self._late())
        finally:
            if flight is not None:
                self.flights.remove(flight)

    def _check(self) -> None:
        """Raises what keeps new requests out."""
        if self.flights.draining:
            raise NotReady("server: it is stopping and takes no more requests; ask another one, or this one later")
        self.room.check()

    def _late(self) -> MeraError:
        return DeadlineExceeded(
            f"request: not answered within the {self.seconds:g} s of this server; ask for less at once, or try again later"
        )


class _Answer:
    """What has been sent of one answer. A 429 says when there will be room."""

    def __init__(self, send: Send, room: Room) -> None:
        self._send, self._room = send, room
        self._started = self._streams = self._complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            if message["status"] == Overloaded.status:
                MutableHeaders(scope=message)["Retry-After"] = str(self._room.wait())
            self._streams = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
        await self._send(message)

    async def end(self, scope: Scope, error: MeraError) -> None:
        """Tells the error: as the answer, or as the last event of a stream. An answer that is cut anywhere else stays cut."""
        if not self._started:
            raise error
        if self._streams and not self._complete:
            path = scope["path"]
            failed(scope, status_of(error, path))
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await self._send({"type": "http.response.body", "body": event_of(error, path), "more_body": True})
                    await self._send({"type": "http.response.body", "body": b"", "more_body": False})
