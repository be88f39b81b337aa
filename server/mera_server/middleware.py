"""What surrounds every request: its id, the size limit of its body, one log line, one count, and an answer to every failure."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mera_server.errors import error_response, foreign
from mera_server.logs import current_request, fields
from mera_server.metrics import Metrics
from merasteer.errors import Cancelled, MeraError, TooLarge

__all__ = [
    "INFERENCE_ROUTES",
    "BodyLimit",
    "Head",
    "Requests",
    "failed",
    "inference_route",
    "infers",
    "log_failure",
    "request_id",
]

INFERENCE_ROUTES = frozenset(
    {"/", "/generate", "/generate_stream", "/classify", "/v1/completions", "/v1/chat/completions"}
)
_OF_A_TASK = re.compile(r"/classify/[^/]+")
_ID = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,126}[\x21-\x7e])?")
access = logging.getLogger("mera.access")
failures = logging.getLogger("mera.errors")


def inference_route(path: str) -> str | None:
    """The inference route that a path belongs to, None for any other."""
    if path in INFERENCE_ROUTES:
        return path
    return "/classify/{task}" if _OF_A_TASK.fullmatch(path) else None


def infers(scope: Scope) -> bool:
    """Whether it is a request that generates."""
    return scope["type"] == "http" and scope["method"] == "POST" and inference_route(scope["path"]) is not None


def request_id(given: str | None) -> str:
    """The caller's X-Request-Id if it is 1 to 128 printable ASCII characters, else a new one."""
    return given if given is not None and _ID.fullmatch(given) else uuid.uuid4().hex


def log_failure(scope: Scope, known: MeraError, error: Exception) -> None:
    """One log line and where it happened. Never the message: it may hold what the caller sent."""
    where = "".join(traceback.format_tb(error.__traceback__))
    name, given = type(error).__name__, scope["state"]["request_id"]
    failures.error(
        "request_id=%s code=%s %s\n%s", json.dumps(given), known.code, name, where, extra=fields(code=known.code)
    )


def failed(scope: Scope, status: int) -> None:
    """Counts this request under `status`: its answer had begun with 200 when it failed."""
    scope["state"]["failed"] = status


class Requests:
    """Outermost: X-Request-Id in and out, catch-all errors, `mera_requests_total` before the last byte leaves, the access log.

    The log line holds no prompt and no query; of the path only what the router knows.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self.metrics)
        about = current_request.set(exchange.id)
        try:
            await self.app(scope, receive, exchange.send)
        except ClientDisconnect:
            pass  # the caller left before the body was there
        except Exception as error:  # noqa: BLE001 - every request ends in an answer
            known = foreign(error)
            if known.status >= 500:
                log_failure(scope, known, error)
            if exchange.status is None:
                await error_response(known, scope["path"])(scope, receive, exchange.send)
        finally:
            exchange.finish(Cancelled.status)
            current_request.reset(about)


class _Exchange:
    """One request while it is answered."""

    def __init__(self, scope: Scope, send: Send, metrics: Metrics) -> None:
        self.id = request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = self.id
        self.scope, self.metrics = scope, metrics
        self._send, self._start, self._finished = send, time.perf_counter(), False
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-Id"] = self.id
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.finish(self.scope["state"].get("failed") or self.status or 500)
        await self._send(message)

    def finish(self, status: int) -> None:
        """Counts and logs, once."""
        if self._finished:
            return
        self._finished = True
        seconds = time.perf_counter() - self._start
        path = self.scope["path"]
        known = inference_route(path)
        if known is not None and (path != "/" or self.scope["method"] == "POST"):  # a browser's GET of / infers nothing
            self.metrics.request(known, status, seconds)
        route = getattr(self.scope.get("route"), "path", known or "unknown")
        method, ms, key = self.scope["method"], round(1000 * seconds, 1), self.scope["state"].get("key") or None
        access.info(
            "request_id=%s method=%s route=%s status=%d ms=%.1f key=%s",
            *(json.dumps(self.id), method, route, status, ms, key or "-"),
            extra=fields(message="request", method=method, route=route, status=status, ms=ms, key=key),
        )


class Head:
    """Innermost: HEAD is answered wherever GET is, by the same head and no body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        asked = {**scope, "method": "GET"}

        async def headless(message: Message) -> None:
            scope["route"] = asked.get("route")  # the log's
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app(asked, receive, headless)


class BodyLimit:
    """Refuses a body above `limit` bytes with TooLarge: by its Content-Length at once, else as soon as it has grown too long."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > self.limit):
            raise self._too_large()
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.limit:
                raise self._too_large()
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"body: larger than the {self.limit} bytes that this server takes; send less or raise max_body_bytes"
        )
