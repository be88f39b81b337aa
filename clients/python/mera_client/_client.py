"""`Client` and `AsyncClient`: the same calls, blocking and awaited. What is sent and how it is read: `_calls`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx

from mera_client import _calls
from mera_client._errors import TransportFailed, httpx_errors_mapped
from mera_client._types import Generation, Inputs, MeraDetails, ProbeInfo, Steering, TaskInfo

T = TypeVar("T")

BASE_URL = "http://127.0.0.1:8000"
TIMEOUT = 60.0  # seconds; a queued request waits before its first byte


def _headers(api_key: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    return {**(headers or {}), **({"authorization": f"Bearer {api_key}"} if api_key else {})}


class Client:
    """A blocking client; safe to share between threads. Use it as a context manager, or `close()` it.

    timeout: seconds, an `httpx.Timeout`, or None for none. api_key: sent as a bearer token. headers: sent with every
    request. transport: what carries the requests, such as `httpx.MockTransport` in tests.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        *,
        timeout: float | httpx.Timeout | None = TIMEOUT,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        with httpx_errors_mapped():
            self._http = httpx.Client(
                base_url=base_url, timeout=timeout, headers=_headers(api_key, headers), transport=transport
            )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        self._http.close()

    def generate(
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
    ) -> Generation:
        """The continuation of `inputs`, and what steering did to it.

        inputs: a prompt, or the fields that the task's template is filled with. temperature None or 0: greedy.
        steering: None leaves it to the server's default. details: also return the tokens with their log-probabilities.
        mera_details: how much of `mera` is filled: none | summary | trace.
        Raises a MeraError: one of the server's, TransportFailed or BadResponse.
        """
        return self._send(
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
            )
        )

    def tasks(self) -> tuple[TaskInfo, ...]:
        """The tasks that the server knows: those with a loaded artifact first, certified before uncertified."""
        return self._send(_calls.tasks())

    def probes(self) -> tuple[ProbeInfo, ...]:
        """The artifacts of the store, rejected ones with their reason."""
        return self._send(_calls.probes())

    def probe(self, digest: str) -> ProbeInfo:
        """One artifact, by its digest or the start of it; raises UnknownProbe."""
        return self._send(_calls.probe(digest))

    def info(self) -> Mapping[str, Any]:
        """What the server says of itself: model, versions, effective configuration."""
        return self._send(_calls.info())

    def live(self) -> bool:
        """Whether the server answers at all."""
        return self._up(_calls.live())

    def ready(self) -> bool:
        """Whether model and store are loaded; False, too, while nothing answers."""
        return self._up(_calls.ready())

    def _send(self, call: _calls.Call[T]) -> T:
        with httpx_errors_mapped():
            response = self._http.send(call.request(self._http))
        return call.read(response)

    def _up(self, call: _calls.Call[bool]) -> bool:
        try:
            return self._send(call)
        except TransportFailed:
            return False


class AsyncClient:
    """`Client`, awaited: the same arguments, methods, values and errors. Use `async with`, or `await aclose()`."""

    def __init__(
        self,
        base_url: str = BASE_URL,
        *,
        timeout: float | httpx.Timeout | None = TIMEOUT,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        with httpx_errors_mapped():
            self._http = httpx.AsyncClient(
                base_url=base_url, timeout=timeout, headers=_headers(api_key, headers), transport=transport
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
            )
        )

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
            response = await self._http.send(call.request(self._http))
        return call.read(response)

    async def _up(self, call: _calls.Call[bool]) -> bool:
        try:
            return await self._send(call)
        except TransportFailed:
            return False
