"""One span for each inference request, with what was decided, and nothing of its text. Skipped without the extra `otel`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.loading import Serving
from mera_server.settings import Settings

from merasteer.errors import InvalidInput

Ready = Callable[[FastAPI], FastAPI]
SECRET = "Xylophone-Quokka"
FIELDS = {"desk": "B", "text": f"Win a holiday for two. {SECRET}"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_request_is_a_span(
    settings: Settings, serving: Serving, ready_app: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra `otel` is not installed")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(memory))
    monkeypatch.setattr("mera_server.tracing.provider", lambda _: provider)
    given = {"otel_endpoint": "http://127.0.0.1:4318/v1/traces"}
    app = ready_app(create_app(settings.model_copy(update=given), loader=lambda _: serving))
    steered = {"inputs": FIELDS, "steering": {"task": "demo_spam"}, "parameters": {"max_new_tokens": 2}}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        mine = {"X-Request-Id": "mine", "traceparent": PARENT}
        answer = (await client.post("/generate", json=steered, headers=mine)).json()
        await client.post("/generate_stream", json=steered)
        texts = {"task": "demo_desk_a", "inputs": [SECRET, "two", "three"]}
        await client.post("/classify", json=texts)
        await client.post("/generate", json={"inputs": SECRET, SECRET: 1})
        await client.get("/tasks")
        app.state.runtime.flights.draining = True
        await client.post("/generate", json=steered)
    spans = memory.get_finished_spans()
    found: list[dict[str, Any]] = [dict(span.attributes) for span in spans]
    assert [span.name for span in spans] == [
        "POST /generate", "POST /generate_stream", "POST /classify", "POST /generate", "POST /generate",
    ]  # fmt: skip
    assert [one["http.response.status_code"] for one in found] == [200, 200, 200, 422, 503]
    assert [span.status.is_ok for span in spans] == [True, True, True, True, False]
    mera = answer["mera"]
    expected = {
        "mera.request_id": "mine",
        "mera.task": "demo_spam",
        "mera.probe": mera["probe"],
        "mera.decision": (mera["decision"],),
        "mera.certified": (mera["guarantee"]["certified"],),
        "mera.predicted_error.before": (pytest.approx(mera["predicted_error"]["before"], abs=1e-5),),
        "mera.prompt_tokens": answer["details"]["prompt_tokens"],
        "mera.generated_tokens": 2,
        "mera.generations": 1,
    }
    for one in found[:2]:
        assert {name: one[name] for name in expected if name != "mera.request_id"} == {
            name: value for name, value in expected.items() if name != "mera.request_id"
        }
    assert found[0]["mera.request_id"] == "mine"
    assert format(spans[0].context.trace_id, "032x") == PARENT.split("-")[1]
    assert format(spans[0].parent.span_id, "016x") == PARENT.split("-")[2]
    assert (found[2]["mera.generations"], found[2]["mera.reason"]) == (3, ("uncertified",) * 3)
    assert found[3]["mera.generations"] == 0
    assert SECRET not in json.dumps([json.loads(span.to_json()) for span in spans])


def test_without_the_packages_it_is_one_line(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidInput, match=r"otel-endpoint: opentelemetry.* is not installed; pip install"):
        create_app(settings.model_copy(update={"otel_endpoint": "http://127.0.0.1:1"}))


def test_nothing_of_it_is_imported_unless_it_was_asked_for(app: FastAPI) -> None:
    assert not [middleware for middleware in app.user_middleware if "Traced" in repr(middleware)]
