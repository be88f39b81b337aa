"""More than fifty malformed requests: each gets its documented status, code and field, none sees its input again."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

SECRET = "zq-secret-value-7731"
LARGE = 77319931
OK = {"inputs": "Desk A.", "parameters": {"max_new_tokens": 1}}


def given(section: str, name: str, value: Any) -> dict[str, Any]:
    task = {"task": "demo_spam"} if section == "steering" and name != "task" else {}
    return {"inputs": "Desk A.", section: {**task, name: value}}


def parameter(name: str, value: Any) -> dict[str, Any]:
    return given("parameters", name, value)


def steering(name: str, value: Any) -> dict[str, Any]:
    return given("steering", name, value)


def biased(name: str, value: Any) -> dict[str, Any]:
    return {"inputs": "Desk A.", "steering": {"task": "demo_spam", "method": "logit_bias", name: value}}


BODIES: list[tuple[str, Any, str]] = [  # code, body, what the message names
    ("invalid_input", [SECRET], "body"),
    ("invalid_input", SECRET, "body"),
    ("invalid_input", None, "body"),
    ("invalid_input", LARGE, "body"),
    ("invalid_input", {}, "inputs"),
    ("invalid_input", {"parameters": {}}, "inputs"),
    ("invalid_input", {"inputs": None}, "inputs"),
    ("invalid_input", {"inputs": LARGE}, "inputs"),
    ("invalid_input", {"inputs": [SECRET]}, "inputs"),
    ("invalid_input", {"inputs": True}, "inputs"),
    ("empty_inputs", {"inputs": ""}, "inputs"),
    ("empty_inputs", {"inputs": {}, "steering": {"task": "demo_spam"}}, "inputs"),
    ("invalid_input", {"inputs": {"text": SECRET}}, "inputs"),
    ("invalid_input", {"inputs": {"text": SECRET}, "steering": {"task": "demo_spam"}}, "desk"),
    ("invalid_input", {"inputs": {"text": LARGE, "desk": "A"}, "steering": {"task": "demo_spam"}}, "text"),
    ("unknown_field", {"inputs": {"text": "", "desk": "A", SECRET: "A"}, "steering": {"task": "demo_spam"}}, "inputs"),
    ("prompt_too_long", {"inputs": f"{SECRET} " * 900}, "inputs"),
    ("prompt_too_long", {"inputs": f"{SECRET} " * 60, "parameters": {"max_new_tokens": 900}}, "inputs"),
    ("unknown_field", {"inputs": "x", "parametres": {"seed": LARGE}}, "parametres"),
    ("unknown_field", {"inputs": "x", SECRET: 1}, "(a field)"),
    ("invalid_input", {"inputs": "x", "parameters": SECRET}, "parameters"),
    ("invalid_input", {"inputs": "x", "parameters": [SECRET]}, "parameters"),
    ("unknown_field", parameter("max_tokens", LARGE), "parameters.max_tokens"),
    ("invalid_input", parameter("max_new_tokens", 0), "parameters.max_new_tokens"),
    ("invalid_input", parameter("max_new_tokens", -LARGE), "parameters.max_new_tokens"),
    ("invalid_input", parameter("max_new_tokens", LARGE), "parameters.max_new_tokens"),
    ("invalid_input", parameter("max_new_tokens", 1.5), "parameters.max_new_tokens"),
    ("invalid_input", parameter("max_new_tokens", SECRET), "parameters.max_new_tokens"),
    ("invalid_input", parameter("max_new_tokens", True), "parameters.max_new_tokens"),
    ("invalid_input", parameter("temperature", -0.5), "parameters.temperature"),
    ("invalid_input", parameter("temperature", SECRET), "parameters.temperature"),
    ("invalid_input", parameter("temperature", False), "parameters.temperature"),
    ("invalid_input", parameter("top_p", 0), "parameters.top_p"),
    ("invalid_input", parameter("top_p", 1.5), "parameters.top_p"),
    ("invalid_input", parameter("top_k", -2), "parameters.top_k"),
    ("invalid_input", parameter("top_k", 2.5), "parameters.top_k"),
    ("invalid_input", parameter("stop", SECRET), "parameters.stop"),
    ("invalid_input", parameter("stop", [""]), "parameters.stop"),
    ("invalid_input", parameter("stop", [SECRET] * 17), "parameters.stop"),
    ("invalid_input", parameter("stop", [LARGE]), "parameters.stop"),
    ("invalid_input", parameter("seed", -1), "parameters.seed"),
    ("invalid_input", parameter("seed", 2**70), "parameters.seed"),
    ("invalid_input", parameter("return_full_text", "yes"), "parameters.return_full_text"),
    ("invalid_input", parameter("details", 1), "parameters.details"),
    ("unsupported", parameter("best_of", LARGE), "parameters.best_of"),
    ("invalid_input", parameter("do_sample", "yes"), "parameters.do_sample"),
    ("unsupported", parameter("repetition_penalty", 1.3), "parameters.repetition_penalty"),
    ("unsupported", parameter("frequency_penalty", 0.2), "parameters.frequency_penalty"),
    ("unsupported", parameter("typical_p", 0.2), "parameters.typical_p"),
    ("unsupported", parameter("truncate", LARGE), "parameters.truncate"),
    ("unsupported", parameter("watermark", True), "parameters.watermark"),
    ("unsupported", parameter("decoder_input_details", True), "parameters.decoder_input_details"),
    ("unsupported", parameter("top_n_tokens", 3), "parameters.top_n_tokens"),
    ("unsupported", parameter("grammar", {"type": "json", "value": SECRET}), "parameters.grammar"),
    ("unsupported", parameter("adapter_id", SECRET), "parameters.adapter_id"),
    ("invalid_input", {"inputs": "x", "steering": SECRET}, "steering"),
    ("unknown_field", steering("thresh", LARGE), "steering.thresh"),
    ("unknown_task", steering("task", SECRET), "demo_spam"),
    ("unknown_task", steering("task", "../" + SECRET), "demo_spam"),
    ("invalid_input", steering("task", LARGE), "steering.task"),
    ("invalid_input", steering("task", ""), "steering.task"),
    ("unknown_probe", steering("probe", "0" * 64), "probe"),
    ("invalid_input", steering("probe", SECRET), "steering.probe"),
    ("invalid_input", steering("method", SECRET), "steering.method"),
    ("invalid_input", steering("method", [SECRET]), "steering.method"),
    ("invalid_input", biased("alpha", 0.5), "steering.alpha"),
    ("invalid_input", biased("positions", "last"), "steering.positions"),
    ("invalid_input", biased("layers", [0]), "steering.layers"),
    ("invalid_input", biased("strength", 1.0), "steering.strength"),
    ("invalid_input", steering("alpha", 0), "steering.alpha"),
    ("invalid_input", steering("alpha", 1), "steering.alpha"),
    ("invalid_input", steering("alpha", SECRET), "steering.alpha"),
    ("invalid_input", steering("positions", SECRET), "steering.positions"),
    ("invalid_input", steering("positions", []), "steering.positions"),
    ("invalid_input", steering("positions", [-1]), "steering.positions"),
    ("invalid_input", steering("positions", [1, 0, 1]), "steering.positions"),
    ("invalid_input", steering("positions", [True]), "steering.positions"),
    ("invalid_input", steering("positions", [0.0]), "steering.positions"),
    ("invalid_input", steering("positions", ["0"]), "steering.positions"),
    ("invalid_input", steering("positions", [0, LARGE]), "steering.positions"),
    ("invalid_input", steering("positions", [2**70]), "steering.positions"),
    ("invalid_input", steering("positions", LARGE), "steering.positions"),
    ("invalid_input", steering("layers", []), "steering.layers"),
    ("invalid_input", steering("layers", [0, 0]), "steering.layers"),
    ("invalid_input", steering("layers", [-1]), "steering.layers"),
    ("invalid_input", steering("layers", [LARGE]), "steering.layers"),
    ("invalid_input", steering("layers", LARGE), "steering.layers"),
    ("invalid_input", steering("strength", 1.0), "steering.strength"),
    ("invalid_input", {"inputs": "x", "steering": {"method": "mera"}}, "steering.task"),
    ("alpha_required", {"inputs": "x", "steering": {"task": "demo_desk_a", "layers": [0]}}, "steering.alpha"),
    ("alpha_required", {"inputs": "x", "steering": {"task": "demo_desk_a", "positions": "all"}}, "steering.alpha"),
    ("invalid_input", {"inputs": "x", "details": SECRET}, "details"),
    ("invalid_input", {"inputs": "x", "stream": 1}, "stream"),
    ("invalid_input", {"inputs": "x", "stream": SECRET}, "stream"),
]
RAW: list[tuple[int, str, bytes, str]] = [  # status, code, bytes, what the message names
    (400, "not_json", b"", "body"),
    (400, "not_json", SECRET.encode(), "body"),
    (400, "not_json", b'{"inputs": "' + SECRET.encode(), "body"),
    (400, "not_json", b"{'inputs': 'x'}", "body"),
    (400, "not_json", b"\xff\xfe\x00", "body"),
    (400, "not_json", b"[" * 10_000, "body"),
    (400, "not_json", b'{"inputs": "\\ud800"}', "body"),
    (422, "invalid_input", b'{"inputs": "x", "parameters": {"temperature": NaN}}', "parameters.temperature"),
    (422, "invalid_input", b'{"inputs": "x", "parameters": {"top_p": Infinity}}', "parameters.top_p"),
    (422, "invalid_input", b'{"inputs": "x", "steering": {"alpha": 1e999, "task": "demo_spam"}}', "steering.alpha"),
    (422, "invalid_input", b'{"inputs": {"text": [-Infinity]}}', "inputs"),
    (413, "too_large", b'{"inputs": "' + b"x" * 30_000 + b'"}', "body"),
]
ROUTES = ("/generate", "/generate_stream", "/")
STATUS = {"unknown_task": 404, "unknown_probe": 404}


def check(response: httpx.Response, status: int, code: str, names: str) -> None:
    body, under_v1 = response.json(), response.request.url.path.startswith("/v1")
    assert (response.status_code, body["error"]["code"]) == (status, code), response.text
    assert body.get("error_type") == (None if under_v1 or status in (404, 405) else "validation")
    assert set(body["error"]) == ({"code", "message", "type", "param"} if under_v1 else {"code", "message"})
    message = body["error"]["message"]
    assert names in message
    assert "\n" not in message
    assert SECRET not in response.text
    assert str(LARGE) not in response.text
    assert response.headers["x-request-id"]


def test_there_are_enough() -> None:
    assert len(BODIES) + len(RAW) >= 50


@pytest.mark.parametrize(
    ("code", "body", "names"), BODIES, ids=[f"{code}-{i}" for i, (code, _, _) in enumerate(BODIES)]
)
async def test_bodies(client: httpx.AsyncClient, code: str, body: Any, names: str) -> None:
    for route in ROUTES:
        check(await client.post(route, content=json.dumps(body)), STATUS.get(code, 422), code, names)
    if isinstance(body, dict) and "stream" not in body:  # refused before the first event: an ordinary answer
        streamed = {**body, "stream": True}
        check(await client.post("/generate", content=json.dumps(streamed)), STATUS.get(code, 422), code, names)
    assert (await client.post("/generate", json=OK)).status_code == 200


@pytest.mark.parametrize(("status", "code", "raw", "names"), RAW, ids=range(len(RAW)))
async def test_raw_bytes(client: httpx.AsyncClient, status: int, code: str, raw: bytes, names: str) -> None:
    for route in (*ROUTES, "/classify"):
        if code in ("not_json", "too_large") or route != "/classify":
            check(await client.post(route, content=raw), status, code, names)
    assert (await client.post("/generate", json=OK)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "names"),
    [
        ("GET", f"/{SECRET}", 404, "not_found", "path"),
        ("POST", "/generate/", 404, "not_found", "path"),
        ("POST", f"/v1/{SECRET}", 404, "not_found", "path"),
        ("GET", "/generate", 405, "method_not_allowed", "POST"),
        ("DELETE", "/tasks", 405, "method_not_allowed", "GET"),
        ("GET", f"/probes/{SECRET}", 404, "unknown_probe", "probe"),
    ],
)
async def test_routes(client: httpx.AsyncClient, method: str, path: str, status: int, code: str, names: str) -> None:
    check(await client.request(method, path), status, code, names)


async def test_the_content_type_does_not_matter(client: httpx.AsyncClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"):
        response = await client.post("/generate", content=json.dumps(OK), headers={"Content-Type": kind})
        assert response.status_code == 200
