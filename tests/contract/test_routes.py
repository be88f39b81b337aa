"""What is known, what is loaded, what runs."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mera_server.loading import Serving
from mera_server.settings import Settings

from merasteer.types import METHODS


async def test_tasks(client: httpx.AsyncClient, serving: Serving) -> None:
    tasks = (await client.get("/tasks")).json()["tasks"]
    assert all(set(task) == {"name", "labels", "probe", "certified", "alpha", "caution"} for task in tasks)
    assert [task["name"] for task in tasks][:2] == ["demo_spam", "demo_desk_a"]
    certified, uncertified, bare = tasks[0], tasks[1], next(task for task in tasks if task["name"] == "sms_spam")
    assert (certified["certified"], certified["probe"]) == (True, serving.catalog.latest["demo_spam"].digest)
    assert 0 < certified["alpha"] < 1
    assert (uncertified["certified"], uncertified["alpha"]) == (False, None)
    assert bare == {
        "name": "sms_spam",
        "labels": ["ham", "spam"],
        "probe": None,
        "certified": False,
        "alpha": None,
        "caution": None,
    }


async def test_probes(client: httpx.AsyncClient, serving: Serving, settings: Settings) -> None:
    response = await client.get("/probes")
    probes = response.json()["probes"]
    assert {probe["digest"] for probe in probes if probe["status"] == "loaded"} == set(serving.catalog.probes)
    rejected = [probe for probe in probes if probe["status"] == "rejected"]
    assert len(rejected) == 1
    assert rejected[0]["method"] is None
    assert {probe["method"] for probe in probes if probe["status"] == "loaded"} <= set(METHODS) - {"none"}
    assert rejected[0]["reason"]
    for probe in probes:
        found = serving.catalog.probes.get(probe["digest"])
        if found is not None and found.certified:
            assert (probe["level"], probe["attempt"], probe["collapse"]) == (
                found.certificate.level,
                found.certificate.attempt,
                None,
            )
            assert probe["broken"]["share"] <= probe["broken"]["upper"]
    assert str(settings.store) not in response.text


async def test_one_probe(client: httpx.AsyncClient, serving: Serving) -> None:
    digest = serving.catalog.latest["demo_spam"].digest
    found = (await client.get(f"/probes/{digest[:10]}")).json()
    assert (found["digest"], found["task"], found["certified"]) == (digest, "demo_spam", True)
    assert found["manifest"]["digest"] == digest
    assert found["calibration"]["decision"] == "certified"


async def test_info(client: httpx.AsyncClient, settings: Settings) -> None:
    found = (await client.get("/info")).json()
    assert found["config"]["max_body_bytes"] == settings.max_body_bytes
    assert found["config"]["max_requests"] == 32
    assert found["model"]["architecture"] == "LlamaForCausalLM"
    assert found["model"]["dtype"] == "float32"
    assert json.dumps(found)


async def test_health(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/live")).json() == {"status": "live"}
    assert (await client.get("/health/ready")).json() == {"status": "ready"}


def resolved(schema: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    name = reference["$ref"].removeprefix("#/components/schemas/")
    found: dict[str, Any] = schema["components"]["schemas"][name]
    return found


async def test_openapi_describes_request_answer_and_errors(app: FastAPI) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        schema = (await client.get("/openapi.json")).json()
    post = schema["paths"]["/generate"]["post"]
    asked = resolved(schema, post["requestBody"]["content"]["application/json"]["schema"])
    assert set(asked["properties"]) == {"inputs", "parameters", "steering", "details", "stream", "options"}
    assert asked["additionalProperties"] == {"type": "null"}
    answered = resolved(schema, post["responses"]["200"]["content"]["application/json"]["schema"])
    assert set(answered["properties"]) == {"generated_text", "details", "mera"}
    for status in ("400", "404", "413", "422", "429", "503"):
        error = post["responses"][status]["content"]["application/json"]["schema"]
        assert set(resolved(schema, error)["properties"]) == {"error", "error_type"}
    text = json.dumps(schema)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(schema["components"]["schemas"])


async def test_openapi_tells_which_routes_need_a_key(app: FastAPI) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    open_to_all = {("get", "/"), ("get", "/health"), ("get", "/health/live"), ("get", "/health/ready")}
    for path, methods in paths.items():
        for method, operation in methods.items():
            told = {status for status in ("401", "403") if status in operation["responses"]}
            assert told == (set() if (method, path) in open_to_all else {"401", "403"}), (method, path)


async def test_openapi_describes_streams_and_batches(app: FastAPI) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        schema = (await client.get("/openapi.json")).json()
    bodies = {
        "/generate": "GenerateBody",
        "/": "GenerateBody",
        "/generate_stream": "StreamBody",
        "/classify": "ClassifyBody",
    }
    for path, body in bodies.items():
        post = schema["paths"][path]["post"]
        assert post["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{body}")
        answers = post["responses"]["200"]["content"]
        kinds = {"application/json"} if path == "/classify" else {"text/event-stream"}
        assert set(answers) == (kinds if path in ("/classify", "/generate_stream") else {"application/json", *kinds})
        if "text/event-stream" in answers:
            told = answers["text/event-stream"]["itemSchema"]["properties"]["data"]["contentSchema"]["anyOf"]
            event, error = (resolved(schema, reference) for reference in told)
            assert set(error["properties"]) == {"error", "error_type"}
            assert set(event["properties"]) == {"index", "token", "step", "generated_text", "details", "mera"}
    one = resolved(
        schema, resolved(schema, {"$ref": "#/components/schemas/ClassifyReply"})["properties"]["results"]["items"]
    )
    named = {"label", "by", "probabilities", "decision", "reason", "predicted_error", "certified"}
    assert set(one["properties"]) == named


async def test_the_log_names_the_route_and_never_the_path(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mera.access"):
        await client.get("/probes/0123")
        await client.post("/generate", json={"inputs": "a secret", "parameters": {"max_new_tokens": 1}})
    lines = [record.getMessage() for record in caplog.records if record.name == "mera.access"]
    assert [line.split()[2:4] for line in lines] == [
        ["route=/probes/{digest}", "status=404"],
        ["route=/generate", "status=200"],
    ]
    assert "secret" not in caplog.text
