"""OpenTelemetry traces, where they are asked for: one span for each inference request, with what steering decided. Never its text.

The packages are the extra `otel`; without `--otel-endpoint` nothing of them is imported. Sampling and resource come from the standard
OTEL_ variables, and a caller's `traceparent` makes the span a part of the caller's trace.
"""

from __future__ import annotations

import os
import threading
from contextvars import ContextVar
from importlib import import_module
from importlib.metadata import version
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mera_server.middleware import inference_route, infers
from mera_server.replies import MeraReply
from merasteer.errors import InvalidInput
from merasteer.types import Generation

__all__ = ["Traced", "close", "note", "provider"]

LAST_SECONDS = 2.0  # in which spans are sent when the server ends
_notes: ContextVar[list[dict[str, Any]] | None] = ContextVar("_notes", default=None)


def provider(endpoint: str) -> Any:
    """What makes spans and sends them to `endpoint`, a URL of OTLP over HTTP. Raises InvalidInput where the packages are missing."""
    try:
        sdk, export = import_module("opentelemetry.sdk.trace"), import_module("opentelemetry.sdk.trace.export")
        resources = import_module("opentelemetry.sdk.resources")
        exporter = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise InvalidInput(
            f"otel-endpoint: {error.name or 'opentelemetry'} is not installed; pip install 'mera-server[otel]'"
        ) from None
    name = os.environ.get("OTEL_SERVICE_NAME", "mera-server")
    facts = {"service.name": name, "service.version": version("mera-server")}
    made = sdk.TracerProvider(resource=resources.Resource.create(facts), shutdown_on_exit=False)  # `close` does it
    made.add_span_processor(export.BatchSpanProcessor(exporter.OTLPSpanExporter(endpoint=endpoint)))
    return made


def close(provider: Any) -> None:
    """Sends what is left. A collector that does not answer holds the end of the server up for no longer than `LAST_SECONDS`."""
    sending = threading.Thread(target=provider.shutdown, name="mera-spans", daemon=True)
    sending.start()
    sending.join(LAST_SECONDS)


def note(mera: MeraReply, generation: Generation) -> None:
    """Keeps what the span of the request under way will tell of one generation."""
    notes = _notes.get()
    if notes is not None:
        read = mera.predicted_error
        notes.append(
            {
                "task": mera.task,
                "probe": mera.probe,
                "decision": mera.decision,
                "reason": mera.reason,
                "certified": mera.guarantee is not None and mera.guarantee.certified,
                "before": None if read is None else read.before,
                "after": None if read is None else read.after,
                "prompt_tokens": generation.prompt_tokens,
                "generated_tokens": len(generation.tokens),
                "steered_tokens": mera.steering.steered_tokens,
                "queue": max(0.0, generation.started_at - generation.queued_at),
            }
        )


class Traced:
    """Around everything that answers: it sees the status that leaves."""

    def __init__(self, app: ASGIApp, provider: Any) -> None:
        self.app = app
        self._api = import_module("opentelemetry.trace")
        self._parent = import_module("opentelemetry.trace.propagation.tracecontext").TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("mera_server", version("mera-server"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not infers(scope):
            await self.app(scope, receive, send)
            return
        carrier = {name: value for name, value in Headers(scope=scope).items() if name in ("traceparent", "tracestate")}
        route = inference_route(scope["path"]) or ""
        span = self._tracer.start_span(
            f"POST {route}", context=self._parent.extract(carrier), kind=self._api.SpanKind.SERVER
        )
        status = 499
        notes: list[dict[str, Any]] = []
        before = _notes.set(notes)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            _notes.reset(before)
            state = scope.get("state", {})
            status = state.get("failed") or status
            span.set_attributes(_attributes(route, status, state, notes))
            if status >= 500:
                span.set_status(self._api.StatusCode.ERROR)
            span.end()


def _attributes(route: str, status: int, state: dict[str, Any], notes: list[dict[str, Any]]) -> dict[str, Any]:
    """One value, or one for each generation in their order."""
    found: dict[str, Any] = {
        "http.request.method": "POST",
        "http.route": route,
        "http.response.status_code": status,
        "mera.request_id": state.get("request_id", ""),
        "mera.key": state.get("key") or "",
        "mera.generations": len(notes),
    }
    for name in ("prompt_tokens", "generated_tokens", "steered_tokens"):
        found[f"mera.{name}"] = sum(one[name] for one in notes)
    if notes:
        found["mera.task"], found["mera.probe"] = (notes[0][name] or "" for name in ("task", "probe"))
        found["mera.queue_seconds"] = max(one["queue"] for one in notes)
        found["mera.certified"] = [one["certified"] for one in notes]
        for name in ("decision", "reason"):
            found[f"mera.{name}"] = [one[name] or "" for one in notes]
        for when in ("before", "after"):
            found[f"mera.predicted_error.{when}"] = [one[when] for one in notes if one[when] is not None]
    return found
