"""`POST /classify`: one batch says of each input what `POST /generate` says of it alone."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from mera_server.loading import Serving
from mera_server.settings import Settings

TEXTS = [f"Win a holiday for two. Enter your code {code} online." for code in range(2220, 2240)]
TEXTS += [f"See you at {hour} then, bring the {thing}." for hour in (7, 8) for thing in ("book", "keys", "dog")]
FIELDS = [{"desk": "AB"[i % 2], "text": text} for i, text in enumerate(TEXTS)]
KEYS = {"label", "probabilities", "by", "decision", "reason", "predicted_error", "certified"}


def near(one: Any) -> Any:
    """`one` with room for the last bits of its numbers, which depend on what is batched together."""
    return {name: near(value) for name, value in one.items()} if isinstance(one, dict) else (
        pytest.approx(one, abs=1e-5) if isinstance(one, float) else one
    )  # fmt: skip


async def alone(client: httpx.AsyncClient, inputs: Any, steering: dict[str, Any]) -> dict[str, Any]:
    """What `/generate` says of one input, in the shape of `/classify`; and its details."""
    body = {"inputs": inputs, "steering": steering, "parameters": {"max_new_tokens": None}}
    response = await client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    answer, mera = response.json(), response.json()["mera"]
    kept = {name: mera[name] for name in ("decision", "reason", "predicted_error")}
    certified = mera["guarantee"] is not None and mera["guarantee"]["certified"]
    return {"result": {**mera["answer"], **kept, "certified": certified}, "details": answer["details"]}


@pytest.mark.parametrize(
    ("task", "steering", "certified"),
    [("demo_spam", {}, True), ("demo_spam", {"alpha": 0.05, "positions": "all"}, False), ("demo_spam", {"method": "none"}, False)],
)  # fmt: skip
async def test_a_batch_equals_one_by_one(
    client: httpx.AsyncClient, serving: Serving, task: str, steering: dict[str, Any], certified: bool
) -> None:
    response = await client.post("/classify", json={"task": task, "inputs": FIELDS, "steering": steering})
    assert response.status_code == 200, response.text
    found = response.json()
    assert set(found) == {"task", "probe", "results", "usage"}
    assert (found["task"], found["probe"]) == (task, serving.catalog.latest[task].digest)
    singly = [await alone(client, inputs, {"task": task, **steering}) for inputs in FIELDS]
    assert found["results"] == [near(one["result"]) for one in singly]
    assert all(set(result) == KEYS and result["certified"] is certified for result in found["results"])
    usage = {name: sum(one["details"][name] for one in singly) for name in ("prompt_tokens", "generated_tokens")}
    assert found["usage"] == usage
    assert len({result["label"] for result in found["results"]}) == 2


async def test_strings_stand_for_the_only_field(client: httpx.AsyncClient) -> None:
    texts, objects = TEXTS[:3], [{"text": text} for text in TEXTS[:3]]
    mixed = [
        (await client.post("/classify", json={"task": "demo_desk_a", "inputs": inputs})).json()
        for inputs in (texts, objects, [texts[0], *objects[1:]])
    ]
    assert mixed[0] == mixed[1] == mixed[2]
    assert [(result["decision"], result["reason"]) for result in mixed[0]["results"]] == [
        ("abstained", "uncertified")
    ] * 3


async def test_a_task_without_an_artifact(client: httpx.AsyncClient) -> None:
    found = (await client.post("/classify", json={"task": "sms_spam", "inputs": ["hello"]})).json()
    assert found["probe"] is None
    [result] = found["results"]
    assert (result["decision"], result["reason"], result["predicted_error"]) == ("abstained", "no_probe", None)
    assert result["certified"] is False
    assert set(result["probabilities"]) == {"ham", "spam"}


async def test_the_largest_batch_and_what_is_counted(client: httpx.AsyncClient, settings: Settings) -> None:
    inputs = [FIELDS[i % 4] for i in range(256)]
    response = await client.post("/classify", json={"task": "demo_spam", "inputs": [{"desk": "A", "text": "hi"}] * 256})
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert len(results) == 256
    assert len({result["label"] for result in results}) == 1
    more = await client.post("/classify", json={"task": "demo_spam", "inputs": [*["hi"] * 256, inputs[0]]})
    assert (more.status_code, more.json()["error"]["code"]) == (422, "invalid_input")
    lines = (await client.get("/metrics")).text.splitlines()
    counts = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    assert counts['mera_requests_total{route="/classify",status="200"}'] == 1
    assert counts['mera_requests_total{route="/classify",status="422"}'] == 1
    assert sum(n for name, n in counts.items() if name.startswith("mera_decisions_total")) == 256
    assert (counts["mera_requests_running"], counts["mera_requests_waiting"], counts["mera_cache_used_ratio"]) == (
        0,
        0,
        0,
    )


GOOD = FIELDS[0]


@pytest.mark.parametrize(
    ("body", "status", "code", "start"),
    [
        ({}, 422, "invalid_input", "task: missing"),
        ({"task": "demo_spam"}, 422, "invalid_input", "inputs: missing"),
        ({"task": "demo_spam", "inputs": []}, 422, "invalid_input", "inputs: got an array that is not allowed"),
        ({"task": "demo_spam", "inputs": "hello"}, 422, "invalid_input", "inputs: got a string"),
        ({"task": "demo_spam", "inputs": [GOOD, 3]}, 422, "invalid_input", "inputs[1]: got an integer"),
        ({"task": "demo_spam", "inputs": [GOOD, GOOD, None]}, 422, "invalid_input", "inputs[2]: got null"),
        ({"task": "demo_spam", "inputs": [GOOD, "hello"]}, 422, "invalid_input", "inputs[1]: a string stands for the only"),
        ({"task": "demo_spam", "inputs": [GOOD, {"desk": "A"}]}, 422, "invalid_input", "inputs[1]: field 'text'"),
        ({"task": "demo_spam", "inputs": [GOOD, {**GOOD, "x": "y"}]}, 422, "unknown_field", "inputs[1]: has a field"),
        ({"task": "demo_spam", "inputs": [{}]}, 422, "empty_inputs", "inputs[0]: empty"),
        ({"task": "demo_spam", "inputs": [GOOD, {**GOOD, "text": "long " * 2000}]}, 422, "prompt_too_long", "inputs[1]: "),
        ({"task": "nope", "inputs": ["x"]}, 404, "unknown_task", "task: no such task"),
        ({"task": "demo_spam", "inputs": [GOOD], "steering": {"alpha": 2}}, 422, "invalid_input", "steering.alpha: "),
        ({"task": "demo_spam", "inputs": [GOOD], "steering": {"layers": [99]}}, 422, "invalid_input", "steering.layers: "),
        ({"task": "demo_spam", "inputs": [GOOD], "steering": {"probe": "00"}}, 404, "unknown_probe", "probe"),
        (
            {"task": "demo_spam", "inputs": [{"desk": "A", "text": "long " * 40}, GOOD], "steering": {"positions": [60]}},
            422, "invalid_input", "inputs[1]: steering.positions: ",
        ),
    ],
)  # fmt: skip
async def test_one_wrong_input_refuses_them_all(
    client: httpx.AsyncClient, serving: Serving, body: dict[str, Any], status: int, code: str, start: str
) -> None:
    response = await client.post("/classify", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), response.text
    assert error["message"].startswith(start)
    for _ in range(500):
        if serving.engine.stats().running == serving.engine.stats().waiting == 0:
            break
    text = (await client.get("/metrics")).text
    assert "mera_decisions_total{" not in text
