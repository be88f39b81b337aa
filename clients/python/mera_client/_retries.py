"""When a request is sent again, and after how long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx

from mera_client._errors import InvalidInput

# After these nothing was generated, so that sending the request again does nothing twice.
REFUSED = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout)


@dataclass(frozen=True)
class Retries:
    """How a call is repeated after 429, 503, or when no connection could be made; never after any other failure.

    attempts: requests in all, the first included. deadline: seconds behind the first request after which none begins.
    first, longest: seconds; the waits double from one to the other. Each is drawn between half of that and all of it, and
    is added to what a Retry-After header asks for. clock: seconds that only grow. draw: a number in [0, 1).

    >>> patient = Retries(attempts=8, deadline=120)
    >>> with Client("http://127.0.0.1:8000", retries=patient) as client:
    ...     client.generate("Once upon a time", max_new_tokens=4).details.generated_tokens
    4
    >>> Retries(attempts=0)
    Traceback (most recent call last):
    ...
    mera_client._errors.InvalidInput: retries.attempts: 0 is below 1; give at least 1, or retries=None for a single attempt
    """

    attempts: int = 4
    deadline: float = 30.0
    first: float = 0.5
    longest: float = 8.0
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.attempts < 1:
            text = f"{self.attempts} is below 1; give at least 1, or retries=None for a single attempt"
            raise InvalidInput(f"retries.attempts: {text}")
        for name in ("deadline", "first", "longest"):
            if not getattr(self, name) >= 0:  # NaN too
                raise InvalidInput(f"retries.{name}: {getattr(self, name)} is not a number of seconds; give 0 or more")


class Tries:
    """The requests of one call. The clock runs from here."""

    def __init__(self, retries: Retries | None) -> None:
        self._retries = retries
        self._made = 0
        self._start = 0.0 if retries is None else retries.clock()

    def wait(self, response: httpx.Response | None) -> float | None:
        """Seconds until the request is sent again, None when it is not. response: None where no connection was made."""
        self._made += 1
        retries = self._retries
        if retries is None or self._made >= retries.attempts:
            return None
        if response is not None and (response.status_code not in REFUSED or _took_too_long(response)):
            return None
        # 64 doublings are beyond any `longest`, and a float does not overflow.
        span = min(retries.longest, retries.first * 2.0 ** min(self._made - 1, 64))
        wait = span * (0.5 + 0.5 * retries.draw()) + (0.0 if response is None else asked(response))
        return wait if retries.clock() + wait <= self._start + retries.deadline else None


def _took_too_long(response: httpx.Response) -> bool:
    """Whether the server gave a request up for its length: it would take as long again."""
    try:
        return bool(response.json()["error"]["code"] == "deadline_exceeded")
    except (ValueError, KeyError, TypeError, httpx.StreamError):
        return False


def asked(response: httpx.Response) -> float:
    """The seconds that Retry-After asks for; 0 without one, or with one that cannot be read.

    A date is compared with the server's own Date: the two clocks need not agree.
    """
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        until, now = (parsedate_to_datetime(text) for text in (value, response.headers.get("date", "")))
        return max(0.0, (until - now).total_seconds())
    except (TypeError, ValueError):  # TypeError: one has a time zone and the other none
        return 0.0
