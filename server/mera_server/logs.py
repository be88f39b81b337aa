"""Log lines, as text or as one JSON object each, and the id of the request that they are about.

A line never holds what a caller sent or the model said; `--log-content` adds lines of their own for that, of the logger `mera.content`.
"""

from __future__ import annotations

import json
import logging
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

__all__ = ["JsonFormatter", "adopt", "current_request", "fields", "set_up"]

OURS = ("mera", "merasteer", "uvicorn")
# What a probe of readiness is told while a model is loading is no news either; that it is stopping has a line of its own.
CHECKS = {"/health": (200, 503), "/health/live": (200,), "/health/ready": (200, 503), "/metrics": (200,)}
current_request: ContextVar[str | None] = ContextVar("current_request", default=None)


def fields(**given: Any) -> dict[str, Any]:
    """`extra` of a log call: what the JSON line has beside or in place of its own."""
    return {"fields": given}


def set_up(level: str, form: Literal["text", "json"], *, checks: bool = True) -> None:
    """Sends everything that is logged to stderr in one form; Python's warnings too. checks: also what machines ask time and again."""
    handler = logging.StreamHandler()
    if not checks:
        handler.addFilter(_is_no_check)
    handler.setFormatter(
        JsonFormatter() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())


def _is_no_check(record: logging.LogRecord) -> bool:
    """Whether the line is anything but that of a health check or a scrape that was answered as such ones are."""
    told: dict[str, Any] = getattr(record, "fields", {})
    return told.get("status") not in CHECKS.get(told.get("route", ""), ()) or record.name != "mera.access"


def adopt(*names: str) -> None:
    """Takes libraries' own handlers away: their lines then have our form, once."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


class JsonFormatter(logging.Formatter):
    """One line: time (UTC), level, logger, message, the request's id where there is one, the call's `fields`, the trace."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request := current_request.get()) is not None:
            told["request_id"] = request
        told |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            told["trace"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(told, default=str)
