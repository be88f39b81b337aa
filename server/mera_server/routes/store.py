"""What is known and what is loaded: `/tasks`, `/probes`, `/probes/{digest}`, `/probes/reload`."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter

from mera_server.catalog import Probe
from mera_server.replies import ErrorReply, TasksReply
from mera_server.runtime import Runtime
from merasteer.errors import Unsupported
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
            probe = runtime.serving().catalog.probes.get(entry.artifact.digest)
            found |= {"here": None if probe is None else _here(runtime, probe)}
        return found

    @routes.post("/probes/reload")
    async def reload() -> dict[str, Any]:
        """Reads the stores again. Requests that run keep their policy; the next ones get what is there now.

        The answer is a `ReloadReply`: how many are loaded and rejected, the digests added and removed, each task's latest.
        """
        told = await asyncio.to_thread(runtime.reload)
        if told is None:
            raise Unsupported("probes: what this server serves was not read from a store; start it with mera serve")
        return told.model_dump()

    return routes


def _here(runtime: Runtime, probe: Probe) -> dict[str, Any]:
    """What this server makes of an artifact: whether its certificate holds, and whether its canaries have been replayed."""
    replayed = runtime.canaries if probe.canaries is not None else None
    return {
        "certified": probe.guaranteed,
        "why": probe.mismatch if probe.certified else "the artifact is not certified",
        "canaries": None if replayed is None else replayed.state(probe.digest),
    }
