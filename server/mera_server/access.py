"""Who may ask what, and how often: keys and their scopes, a token bucket for each key.

GET /health, /health/…, / (the page)             nobody is asked for a key
every other GET, HEAD, OPTIONS                   read, known path or not
POST /tokenize, /detokenize                      read
POST on an inference route                       generate
everything else                                  admin
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from mera_server.keys import Key, KeyRing
from mera_server.keys import Scope as KeyScope
from mera_server.middleware import inference_route
from merasteer.errors import Forbidden, RateLimited, Unauthorized

__all__ = ["OPEN", "Access", "Bucket", "charge", "needed"]

OPEN = frozenset({"/", "/health", "/health/live", "/health/ready"})
_READING = ("GET", "HEAD", "OPTIONS")
_BEARER = re.compile(rb"bearer +([\x21-\x7e]+) *", re.IGNORECASE)


def needed(method: str, path: str) -> KeyScope | None:
    """The scope that a request needs, None for none. What nobody has thought of needs `admin`."""
    if method in _READING:
        return None if path in OPEN else "read"
    if method == "POST" and path in ("/tokenize", "/detokenize"):
        return "read"
    return "generate" if method == "POST" and inference_route(path) is not None else "admin"


@dataclass(eq=False)
class Bucket:
    """`rate` tokens a second, `burst` at most. clock: seconds that only grow.

    A request needs one token and may spend more behind that: the debt holds up the next one. So a batch that is larger than
    the burst is served, and paid for.
    """

    rate: float
    burst: float
    clock: Callable[[], float] = time.monotonic
    _tokens: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._tokens, self._at = self.burst, self.clock()

    def take(self) -> float:
        """0, one token taken; or the seconds until there is one."""
        now = self.clock()
        self._tokens, self._at = min(self.burst, self._tokens + (now - self._at) * self.rate), now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self.rate
        self._tokens -= 1.0
        return 0.0

    def spend(self, tokens: int) -> None:
        """Takes tokens that need not be there."""
        self._tokens -= tokens


def charge(scope: Scope, generations: int) -> None:
    """A request that was taken pays for each of its generations; its first was paid for when it came in."""
    bucket: Bucket | None = scope.get("state", {}).get("bucket")
    if bucket is not None:
        bucket.spend(generations - 1)


class Access:
    """Refuses who has no key (401), too little of one (403), or asks too often (429), before anything of the body is read.

    ring: None lets everybody do everything. rate: generations a second for each key, None for any number; without keys all callers
    share one bucket. The key's name is left in the request's state as `key`, its bucket as `bucket`.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing | None, rate: float | None, burst: float) -> None:
        self.app = app
        self._ring, self._rate, self._burst = ring, rate, burst
        self._buckets: dict[str, Bucket] = {}  # as many as there are keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            wanted = needed(scope["method"], scope["path"])
            key = None if self._ring is None or wanted is None else self._permitted(self._ring, scope, wanted)
            name = "" if key is None else key.name
            scope.setdefault("state", {})["key"] = name
            if wanted == "generate":
                self._limit(scope, name)
        await self.app(scope, receive, send)

    def _permitted(self, ring: KeyRing, scope: Scope, wanted: KeyScope) -> Key:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        match = _BEARER.fullmatch(given[0].strip()) if len(given) == 1 else None
        if match is None:
            raise Unauthorized("authorization: no key; send the header `Authorization: Bearer <key>`, once")
        key = ring.find(match[1])
        if key is None:
            raise Unauthorized("authorization: not a key of this server; ask its operator for one")
        scope.setdefault("state", {})["key"] = key.name  # also in the log line of a refusal
        if not key.permits(wanted):
            raise Forbidden(f"authorization: this key's scope is {key.scope} and this needs {wanted}; use another key")
        return key

    def _limit(self, scope: Scope, name: str) -> None:
        if self._rate is None:
            return
        bucket = self._buckets.setdefault(name, Bucket(self._rate, self._burst))
        wait = bucket.take()
        if wait > 0:
            seconds = math.ceil(wait)
            raise RateLimited(
                f"key: above its {self._rate:g} generations a second; try again in {seconds} s", retry_after=seconds
            )
        scope["state"]["bucket"] = bucket
