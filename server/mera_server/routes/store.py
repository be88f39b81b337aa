"""What is known and what is loaded: `/tasks`, `/probes`, `/probes/{digest}`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from mera_server.replies import ErrorReply, TasksReply
from mera_server.runtime import Runtime
from merasteer.store import resolve_prefix, summary

__all__ = ["router"]

ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorReply} for status in (404, 422, 503)}


def router(runtime: Runtime) -> APIRouter:
    """The routes over one runtime."""
    routes = APIRouter(responses=ERRORS)

    @routes.get("/tasks")
    async def tasks() -> TasksReply:
        """Tasks, those with an artifact first."""
        return runtime.serving().catalog.listing()

    @routes.get("/probes")
    async def probes() -> dict[str, list[dict[str, Any]]]:
        """Every artifact found, the rejected ones with their reason."""
        return {"probes": [summary(entry) for entry in runtime.serving().catalog.entries]}

    @routes.get("/probes/{digest}")
    async def probe(digest: str) -> dict[str, Any]:
        """One artifact by a prefix of its digest: its facts, manifest and calibration."""
        entry = resolve_prefix(runtime.serving().catalog.entries, digest)
        found: dict[str, Any] = summary(entry)
        if entry.artifact is not None:
            found |= {"manifest": dict(entry.artifact.manifest), "calibration": dict(entry.artifact.calibration)}
        return found

    return routes
