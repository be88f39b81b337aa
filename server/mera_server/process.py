"""The server as a process: what a signal or a failure makes it do, and connections that never ask anything.

SIGTERM, SIGINT    /health/ready answers 503 and new requests are refused; those that run have the drain timeout to finish, then
                   they end with `engine_failed`; then the process ends. A second signal ends it at once.
a failure          the same, and the exit code is not 0: an orchestrator starts another
"""

from __future__ import annotations

import asyncio
import logging
import signal
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mera_server.running import Flights
from merasteer.errors import EngineFailed

__all__ = ["PatientProtocol", "Server", "config_of"]

log = logging.getLogger("mera.process")
_HEAD_SECONDS = 20.0  # from a connection, or from its last answer's keep-alive, to the end of a request's head
_GRACE = 5.0  # seconds in which a request that was cut says so, and a slow reader takes the rest


class PatientProtocol(H11Protocol):
    """Closes a connection on which no complete request head has arrived for a while: opening many costs an attacker more than us."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head = self.loop.call_later(_HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._head is None and self.transport is not None and not self.transport.is_closing():
            self._head = self.loop.call_later(_HEAD_SECONDS, self._give_up)  # the beginning of another request

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._head = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which drains before it closes."""

    def __init__(self, config: uvicorn.Config, flights: Flights, drain: float) -> None:
        config.timeout_graceful_shutdown = round(_GRACE)
        super().__init__(config)
        self._flights, self._drain = flights, drain
        self._leaving = False
        self._drained: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """Drains and ends. From any thread, any number of times."""
        self._leaving = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the base class names it
        """A first signal drains, a second one ends at once. Only an interrupt is passed on, as exit code 130."""
        if sig == signal.SIGINT and sig not in self._captured_signals:
            self._captured_signals.append(sig)
        if self._leaving:
            self.should_exit = self.force_exit = True
        self.leave()

    async def on_tick(self, counter: int) -> bool:
        """uvicorn asks ten times a second whether to end."""
        if self._leaving and self._drained is None:
            self._flights.draining = True
            self._drained = asyncio.create_task(self._finish())
        return await super().on_tick(counter)

    async def _finish(self) -> None:
        log.info("stopping: %d requests run and have %g s to finish", len(self._flights), self._drain)
        if not await self._flights.ended(self._drain):
            log.warning("stopping: %d requests are cut", len(self._flights))
            self._flights.cut(EngineFailed("server: it was stopped before the answer was complete; send it again"))
            await self._flights.ended(_GRACE)
        self.should_exit = True


def config_of(app: Any, **more: Any) -> uvicorn.Config:
    """How uvicorn is to serve `app`."""
    return uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="on", server_header=False, http=PatientProtocol, **more
    )
