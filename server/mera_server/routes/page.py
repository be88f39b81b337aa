"""The page at `/`, and `/tasks/forms`: what its form needs to know.

One document, put together once from the files of `page/`: it asks for nothing but this server's own routes, and its policy lets the
browser run the one script and the one style sheet that stand in it, known by their hashes. Text that comes from outside cannot become
markup there: the policy takes the means away.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from mera_server.catalog import Catalog, Probe
from mera_server.replies import ErrorReply, TaskReply
from mera_server.runtime import Runtime
from merasteer.tasks import fields_of
from merasteer.types import ServedTask

__all__ = ["assemble", "router"]

SCRIPTS = ("dom", "words", "server", "side", "heatmap", "probes", "rates", "form", "main")  # in this order: one module
_FOLDER = files("mera_server") / "page"
_HEADERS = {
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def router(runtime: Runtime) -> APIRouter:
    """The routes over one runtime."""
    routes = APIRouter()
    document, policy = assemble()
    examples: dict[str, list[dict[str, Any]]] = json.loads(_read("examples.json"))

    @routes.get("/", response_class=HTMLResponse)
    async def page() -> Response:
        """The page: the same bytes for everybody, with or without a key."""
        headers = _HEADERS | {"content-security-policy": policy}
        return Response(document, media_type="text/html", headers=headers)

    @routes.get("/tasks/forms", responses={503: {"model": ErrorReply}})
    async def forms() -> dict[str, Any]:
        """Each task of `/tasks` with its template, its methods and some examples."""
        serving = runtime.serving()
        catalog = serving.catalog
        return {
            "max_new_tokens_limit": runtime.limits.max_new_tokens or serving.engine.max_tokens,
            "tasks": [_task(row, catalog, examples.get(row.name, [])) for row in catalog.listing().tasks],
        }

    return routes


def assemble() -> tuple[bytes, str]:
    """The document, and the Content-Security-Policy that fits it."""
    style = _read("style.css")
    script = "\n".join(_read(f"{name}.js") for name in SCRIPTS)
    document = _read("index.html").replace("/* style */", style).replace("/* script */", script)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return document.encode(), "; ".join(f"{name} {value}" for name, value in policy.items())


def _task(row: TaskReply, catalog: Catalog, examples: list[dict[str, Any]]) -> dict[str, Any]:
    probe = catalog.latest.get(row.name)
    task = catalog.task(row.name) if probe is None else probe.task
    fields = fields_of(task.template)
    return row.model_dump() | {
        "template": catalog.prompter(task).template or task.template,
        "fields": fields,
        "max_new_tokens": _budget(task),
        "layers": [] if probe is None else probe.active,
        "method": "mera" if probe is None else probe.method,
        "methods": ["mera"] if probe is None else _methods(probe),
        "examples": [one for one in examples if set(one["fields"]) == set(fields)],
    }


def _budget(task: ServedTask) -> int | None:
    """The tokens that the page asks for unless told otherwise: those of the label (null), or enough to watch where more change nothing."""
    if task.choose == "labels":
        return None
    return task.max_new_tokens if task.position == "exact" else max(8, task.max_new_tokens)


def _methods(probe: Probe) -> list[str]:
    """What this artifact can be asked for, its own method first."""
    offered = {
        "mera": bool(probe.active) and not probe.says,
        "additive": "additive" in probe.baselines,
        "contrastive": "contrastive" in probe.baselines,
        "logit_bias": probe.label_bias is not None,
        "mera+bias": probe.label_bias is not None and bool(probe.active) and not probe.says,
        "label_probe": probe.says,
    }
    return sorted((name for name, there in offered.items() if there), key=lambda name: name != probe.method)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(inlined: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(inlined.encode()).digest()).decode()}'"
