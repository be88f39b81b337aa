"""Tokens as they come, and the server-sent events that carry them.

The generation thread hands each token to the event loop; a `TokenStream` turns it into a `Piece`. An `EventStream` sends what a
route makes of the pieces: an error before the first event is an ordinary answer, a later one is the last event. Whatever ends the
stream, the engine's requests end with it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mera_server.bridge import Finished, Named, disconnected, encode, finish, native, result_of, submit
from mera_server.errors import foreign
from mera_server.loading import Serving
from mera_server.middleware import failed, log_failure
from mera_server.report import step
from mera_server.resolve import Plan
from mera_server.runtime import Runtime
from mera_server.told import event_of, status_of
from merasteer.errors import Cancelled, MeraError
from merasteer.types import GeneratedToken, Generation

__all__ = ["EventStream", "Piece", "TokenStream", "event", "open_stream"]

_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}
_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, eq=False)
class Piece:
    """One token of one choice.

    choice: the number of its plan. text: what became certain with this token; the texts of a choice join to its `Generation.text`.
    step: what `details` tells of the step that chose it, None for none. end: there with the last token of the choice.
    """

    choice: int
    token: GeneratedToken
    text: str
    special: bool
    step: dict[str, Any] | None
    end: Finished | None


async def open_stream(
    runtime: Runtime,
    plans: Sequence[Plan],
    request: Request,
    named: Named = native,
    prompts: Sequence[tuple[int, ...]] | None = None,
) -> TokenStream:
    """The tokens of all plans, submitted as one batch. Raises what the engine refuses; then nothing is left running.

    prompts: their tokens, where these are not those of the plans' prompts.
    """
    serving, plans = runtime.serving(), await runtime.settle(plans)
    tokens = prompts or await encode(serving, plans)
    stream = TokenStream(runtime, serving, plans, tokens)
    stream.start(request, named)
    return stream


class TokenStream:
    """An async iterator of `Piece`, over once every choice has ended. Raises the first error of a choice, Cancelled if the caller left.

    Whoever opens one closes it: `EventStream` does.
    """

    def __init__(
        self, runtime: Runtime, serving: Serving, plans: Sequence[Plan], prompts: Sequence[tuple[int, ...]]
    ) -> None:
        self._runtime, self._serving, self._plans, self._prompts = runtime, serving, plans, prompts
        self._told = [0] * len(plans)  # characters of each choice's text that have been handed out
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, GeneratedToken | None]] = asyncio.Queue()  # None: the choice has ended
        self._futures: list[Future[Generation]] = []
        self._last: dict[int, GeneratedToken] = {}  # last tokens, until their generation is there
        self._open = len(plans)
        self._gone: asyncio.Task[None] | None = None
        self._left = False

    def start(self, request: Request, named: Named) -> None:
        """Submits the plans, and watches whether the caller leaves."""
        self._futures = submit(self._runtime, self._serving, request, self._plans, self._prompts, named, self._watch)
        for choice, future in enumerate(self._futures):
            future.add_done_callback(self._ended(choice))
        self._gone = self._loop.create_task(self._until_left(request))

    def close(self) -> None:
        """Ends what still runs. Any number of times."""
        for future in self._futures:
            future.cancel()
        if self._gone is not None:
            self._gone.cancel()
            self._gone = None  # its traceback refers to the stream, and the stream to the catalog: artifacts would stay

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> Piece:
        while self._open:
            choice, token = await self._queue.get()
            if self._left:
                raise Cancelled("request: the caller left before the answer")
            if token is None:
                self._open -= 1
                return self._final(choice, result_of(self._futures[choice]))
            if not token.last:
                self._told[choice] += len(token.text)
                return self._piece(choice, token, token.text, None)
            self._last[choice] = token
        raise StopAsyncIteration

    def _watch(self, choice: int) -> Callable[[GeneratedToken], None]:
        """Hands tokens over, on the generation thread. A loop that is closed raises: the engine then drops the request.

        What is handed out knows the queue, not the stream: whoever keeps it keeps no artifact.
        """
        loop, queue = self._loop, self._queue

        def told(token: GeneratedToken) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (choice, token))

        return told

    def _ended(self, choice: int) -> Callable[[Future[Generation]], None]:
        """Behind the tokens of the choice, since the same thread hands both over."""
        loop, queue = self._loop, self._queue

        def told(_future: Future[Generation]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(queue.put_nowait, (choice, None))

        return told

    async def _until_left(self, request: Request) -> None:
        await disconnected(request)
        self._left = True
        self.close()
        self._queue.put_nowait((0, None))

    def _final(self, choice: int, generation: Generation) -> Piece:
        end = finish(self._runtime, self._serving, self._plans[choice], generation)
        return self._piece(choice, self._last.pop(choice), generation.text[self._told[choice] :], end)

    def _piece(self, choice: int, token: GeneratedToken, text: str, end: Finished | None) -> Piece:
        return Piece(choice, token, text, token.id in self._serving.special, step(self._plans[choice], token), end)


def event(payload: Mapping[str, Any], begin: bytes = b"data:") -> bytes:
    """One server-sent event. Only ASCII: some clients end a line at U+0085 or U+2028, which JSON may hold as they are.

    begin: native events have no blank behind the colon, as text-generation-inference's; OpenAI's have one, and clients count on it.
    """
    return begin + _json(payload).encode() + b"\n\n"


class EventStream(StreamingResponse):
    """Sends `events` as they come, and closes `tokens`, from which they are made."""

    def __init__(self, tokens: TokenStream, events: AsyncIterable[bytes]) -> None:
        super().__init__(events, headers=_HEADERS)
        self.tokens = tokens

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        started = False
        try:
            async for part in self.body_iterator:
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except (Cancelled, OSError):  # some servers tell a sender of a lost connection by an OSError
            if not started:
                raise
            return  # the last byte never leaves: the middleware counts a caller who left
        except Exception as error:
            if not started:
                raise
            await send({"type": "http.response.body", "body": _told(scope, error), "more_body": True})
        finally:
            self.tokens.close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _told(scope: Scope, error: Exception) -> bytes:
    """The event of an error in mid-stream. Its status is what is counted, though 200 was sent."""
    known: MeraError = foreign(error)
    if known.status == 500:
        log_failure(scope, known, error)
    path = scope["path"]
    failed(scope, status_of(known, path))
    return event_of(known, path)
