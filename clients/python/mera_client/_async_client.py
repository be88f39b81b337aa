"""`AsyncClient`: every call of `Client`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx

from mera_client import _calls
from mera_client._errors import TransportFailed, httpx_errors_mapped
from mera_client._events import EventReader
from mera_client._options import BASE_URL, TIMEOUT, Timeout, request_headers
from mera_client._proxies import environment
from mera_client._retries import UNSENT, Retries, Tries
from mera_client._types import (
    Classification,
    Generation,
    Inputs,
    MeraDetails,
    ProbeInfo,
    Steering,
    TaskInfo,
    TokenEvent,
)

T = TypeVar("T")


class AsyncClient:
    """`Client`, awaited: the same arguments, methods, values and errors. Use `async with`, or `await aclose()`.

    sleep: what is awaited between two attempts; `trio.sleep` under trio.

    >>> async def main():
    ...     async with AsyncClient("http://127.0.0.1:8000") as client:
    ...         prompts = [f"Message {i}:" for i in range(3)]
    ...         return await asyncio.gather(*(client.generate(prompt, max_new_tokens=2) for prompt in prompts))
    >>> [answer.details.generated_tokens for answer in asyncio.run(main())]
    [2, 2, 2]
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        *,
        timeout: Timeout = TIMEOUT,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        retries: Retries | None = Retries(),  # noqa: B008 - frozen
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._retries, self._sleep = retries, sleep
        with httpx_errors_mapped():
            self._http = httpx.AsyncClient(
                base_url=base_url,
                timeout=timeout,
                headers=request_headers(api_key, headers),
                transport=transport,
                **(environment(base_url) if transport is None else {}),
            )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """As `Client.close`."""
        await self._http.aclose()

    async def generate(
        self,
        inputs: Inputs,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        return_full_text: bool = False,
        details: bool = False,
        steering: Steering | Mapping[str, Any] | None = None,
        mera_details: MeraDetails = "summary",
        timeout: Timeout = None,
    ) -> Generation:
        """As `Client.generate`."""
        return await self._send(
            _calls.generate(
                inputs,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                stop=stop,
                seed=seed,
                return_full_text=return_full_text,
                details=details,
                steering=steering,
                mera_details=mera_details,
                timeout=timeout,
            )
        )

    def generate_stream(
        self,
        inputs: Inputs,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        return_full_text: bool = False,
        steering: Steering | Mapping[str, Any] | None = None,
        mera_details: MeraDetails = "summary",
        timeout: Timeout = None,
    ) -> AsyncGenerator[TokenEvent]:
        """As `Client.generate_stream`. A loop that is left early wants `contextlib.aclosing`, which disconnects at once.

        >>> from contextlib import aclosing
        >>> async def main():
        ...     async with AsyncClient("http://127.0.0.1:8000") as client:
        ...         async with aclosing(client.generate_stream("Once upon a time", max_new_tokens=4)) as events:
        ...             return [event.index async for event in events]
        >>> asyncio.run(main())
        [1, 2, 3, 4]
        """
        return self._events(
            _calls.streamed(
                _calls.generate(
                    inputs,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    top_k=top_k,
                    stop=stop,
                    seed=seed,
                    return_full_text=return_full_text,
                    details=False,
                    steering=steering,
                    mera_details=mera_details,
                    timeout=timeout,
                )
            )
        )

    async def classify(
        self,
        task: str,
        inputs: Sequence[Inputs],
        *,
        steering: Steering | Mapping[str, Any] | None = None,
        timeout: Timeout = None,
    ) -> Classification:
        """As `Client.classify`."""
        return await self._send(_calls.classify(task, inputs, steering=steering, timeout=timeout))

    async def tasks(self) -> tuple[TaskInfo, ...]:
        """As `Client.tasks`."""
        return await self._send(_calls.tasks())

    async def probes(self) -> tuple[ProbeInfo, ...]:
        """As `Client.probes`."""
        return await self._send(_calls.probes())

    async def probe(self, digest: str) -> ProbeInfo:
        """As `Client.probe`."""
        return await self._send(_calls.probe(digest))

    async def info(self) -> Mapping[str, Any]:
        """As `Client.info`."""
        return await self._send(_calls.info())

    async def live(self) -> bool:
        """As `Client.live`."""
        return await self._up(_calls.live())

    async def ready(self) -> bool:
        """As `Client.ready`."""
        return await self._up(_calls.ready())

    async def _send(self, call: _calls.Call[T]) -> T:
        with httpx_errors_mapped():
            response = await self._respond(call, stream=False)
        return call.read(response)

    async def _events(self, call: _calls.Call[EventReader]) -> AsyncGenerator[TokenEvent]:
        with httpx_errors_mapped():
            response = await self._respond(call, stream=True)
            try:
                if not response.is_success:
                    await response.aread()
                reader = call.read(response)
                async for chunk in response.aiter_bytes():
                    for event in reader.feed(chunk):
                        yield event
                reader.finish()
            finally:
                await response.aclose()

    async def _respond(self, call: _calls.Call[Any], *, stream: bool) -> httpx.Response:
        """As `Client._respond`."""
        tries = Tries(self._retries if call.again else None)
        request = call.request(self._http)
        while True:
            try:
                response = await self._http.send(request, stream=stream)
            except UNSENT:
                wait = tries.wait(None)
                if wait is None:
                    raise
            else:
                wait = tries.wait(response)
                if wait is None:
                    return response
                await response.aclose()
            await self._sleep(wait)

    async def _up(self, call: _calls.Call[bool]) -> bool:
        try:
            return await self._send(call)
        except TransportFailed:
            return False
