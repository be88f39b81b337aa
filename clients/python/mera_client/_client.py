"""`Client`: every call, blocking. What is sent and how it is read: `_calls`; its twin: `_async_client`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
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


class Client:
    """A blocking client; safe to share between threads. Use it as a context manager, or `close()` it.

    timeout: seconds that each of connecting, sending and waiting for the next bytes may take, an `httpx.Timeout`, or None
    for none. api_key: sent as a bearer token. headers: sent with every request. retries: None for none. transport: what
    carries the requests, such as `httpx.MockTransport` in tests. sleep: what waits between two attempts.

    >>> with Client("http://127.0.0.1:8000", timeout=30) as client:
    ...     answer = client.generate({"desk": "B", "text": "Claim your prize"}, steering={"task": "demo_spam"})
    >>> answer.generated_text, answer.mera.decision, answer.mera.guarantee.certified
    (' spam', 'steered', True)
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        *,
        timeout: Timeout = TIMEOUT,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        retries: Retries | None = Retries(),  # noqa: B008 - frozen
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._retries, self._sleep = retries, sleep
        with httpx_errors_mapped():
            self._http = httpx.Client(
                base_url=base_url,
                timeout=timeout,
                headers=request_headers(api_key, headers),
                transport=transport,
                **(environment(base_url) if transport is None else {}),
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
        timeout: Timeout = None,
    ) -> Generation:
        """The continuation of `inputs`, and what steering did to it.

        inputs: a prompt, or the fields that the task's template is filled with. temperature None or 0: greedy.
        steering: None leaves it to the server's default. details: also return the tokens with their log-probabilities.
        mera_details: how much of `mera` is filled: none | summary | trace. timeout: None for the client's own.
        Raises a MeraError: one of the server's, TransportFailed or BadResponse.

        >>> client.generate("Once upon a time", max_new_tokens=4).details.generated_tokens
        4
        >>> steering = Steering(task="demo_spam", method="none")  # what the model says when it is left alone
        >>> client.generate({"desk": "B", "text": "Claim your prize"}, steering=steering).mera.decision
        'off'
        >>> client.generate("hello", steering={"task": "spam"})
        Traceback (most recent call last):
        ...
        mera_client._errors.UnknownTask: ...
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
    ) -> Generator[TokenEvent]:
        """`generate`, token by token; the last event holds the text, the details and `mera`.

        Every token has its log-probability. The request is sent when the first event is asked for. Closing the iterator
        disconnects, and the server then gives the request up: `contextlib.closing` does so however the loop is left.
        Nothing is repeated once the answer began; an error inside it is raised where the next event was expected.

        >>> from contextlib import closing
        >>> with closing(client.generate_stream("Once upon a time", max_new_tokens=4)) as events:
        ...     texts = [event.token.text for event in events]
        >>> len(texts)
        4
        >>> for event in client.generate_stream("Once upon a time", max_new_tokens=4):
        ...     if event.last:
        ...         print(event.generated_text == "".join(texts), event.details.finish_reason, event.mera.decision)
        True length off
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

    def classify(
        self,
        task: str,
        inputs: Sequence[Inputs],
        *,
        steering: Steering | Mapping[str, Any] | None = None,
        timeout: Timeout = None,
    ) -> Classification:
        """A label for each input, all in one batch: 1 to 256 of them; one bad input refuses all, and is named.

        inputs: the fields that the task's template is filled with; a string where it has only one. steering: None steers
        as the task's artifact says. It names no task.

        >>> rows = [{"desk": "A", "text": "See you at noon"}, {"desk": "B", "text": "Claim your prize"}]
        >>> answer = client.classify("demo_spam", rows)
        >>> [result.label for result in answer.results]
        ['ham', 'spam']
        >>> sorted(answer.results[0].probabilities)
        ['ham', 'spam']
        """
        return self._send(_calls.classify(task, inputs, steering=steering, timeout=timeout))

    def tasks(self) -> tuple[TaskInfo, ...]:
        """The tasks that the server knows: those with a loaded artifact first, certified before uncertified.

        >>> client.tasks()[0].name, client.tasks()[0].labels
        ('demo_spam', ('ham', 'spam'))
        """
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
        """Whether the server answers at all. Asked once, whatever `retries` says; `ready` too."""
        return self._up(_calls.live())

    def ready(self) -> bool:
        """Whether model and store are loaded; False, too, while nothing answers."""
        return self._up(_calls.ready())

    def _send(self, call: _calls.Call[T]) -> T:
        with httpx_errors_mapped():
            response = self._respond(call, stream=False)
        return call.read(response)

    def _events(self, call: _calls.Call[EventReader]) -> Generator[TokenEvent]:
        with httpx_errors_mapped():
            response = self._respond(call, stream=True)
            try:
                if not response.is_success:
                    response.read()
                reader = call.read(response)
                for chunk in response.iter_bytes():
                    yield from reader.feed(chunk)
                reader.finish()
            finally:
                response.close()

    def _respond(self, call: _calls.Call[Any], *, stream: bool) -> httpx.Response:
        """The last of the answers, its body unread if `stream`. What comes to the caller is never an earlier one."""
        tries = Tries(self._retries if call.again else None)
        request = call.request(self._http)
        while True:
            try:
                response = self._http.send(request, stream=stream)
            except UNSENT:
                wait = tries.wait(None)
                if wait is None:
                    raise
            else:
                wait = tries.wait(response)
                if wait is None:
                    return response
                response.close()
            self._sleep(wait)

    def _up(self, call: _calls.Call[bool]) -> bool:
        try:
            return self._send(call)
        except TransportFailed:
            return False
