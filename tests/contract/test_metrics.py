"""After a known load the metrics say exactly what happened."""

from __future__ import annotations

import asyncio
from collections import Counter
from importlib.metadata import version

import httpx
from mera_server.loading import Serving

TASK = {"task": "demo_spam"}
FIELDS = {"desk": "B", "text": "Win a holiday for two. Enter your code 2220 online."}


async def samples(client: httpx.AsyncClient) -> dict[str, float]:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = (line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


async def test_a_known_load(client: httpx.AsyncClient, serving: Serving) -> None:
    good = [
        *[{"inputs": FIELDS, "steering": TASK, "parameters": {"max_new_tokens": 1}}] * 3,
        {"inputs": FIELDS, "steering": {**TASK, "method": "none"}, "parameters": {"max_new_tokens": 1}},
        {"inputs": {"text": "hello"}, "steering": {"task": "demo_desk_a"}, "parameters": {"max_new_tokens": 1}},
        {"inputs": {"text": "hello"}, "steering": {"task": "sms_spam"}, "parameters": {"max_new_tokens": 1}},
        *[{"inputs": "Desk A.", "parameters": {"max_new_tokens": 3}}] * 2,
    ]
    answers = [
        response.json() for response in await asyncio.gather(*(client.post("/generate", json=body) for body in good))
    ]
    bad = [
        client.post("/generate", json={}),
        client.post("/generate", json={"inputs": "x", "steering": {"task": "nope"}}),
        client.post("/generate", content=b"{"),
        client.post("/generate", content=b"x" * 30_000),
        client.get("/generate"),
    ]
    await asyncio.gather(*bad)
    await client.get("/tasks")
    await client.get("/absent")
    found = await samples(client)

    requests = {name: value for name, value in found.items() if name.startswith("mera_requests_total")}
    counts = {"200": 8, "422": 1, "404": 1, "400": 1, "413": 1, "405": 1}
    assert requests == {
        f'mera_requests_total{{route="/generate",status="{status}"}}': n for status, n in counts.items()
    }
    decided = answers[0]["mera"]["decision"]
    decisions = {name: value for name, value in found.items() if name.startswith("mera_decisions_total")}
    assert decisions == {
        f'mera_decisions_total{{decision="{decided}",reason="",task="demo_spam"}}': 3,
        'mera_decisions_total{decision="off",reason="",task="demo_spam"}': 1,
        'mera_decisions_total{decision="abstained",reason="uncertified",task="demo_desk_a"}': 1,
        'mera_decisions_total{decision="abstained",reason="no_probe",task="sms_spam"}': 1,
        'mera_decisions_total{decision="off",reason="",task=""}': 2,
    }
    details = [answer["details"] for answer in answers]
    assert found['mera_tokens_total{kind="prompt"}'] == sum(detail["prompt_tokens"] for detail in details)
    assert found['mera_tokens_total{kind="generated"}'] == sum(detail["generated_tokens"] for detail in details)
    steered = sum(answer["mera"]["steering"]["steered_tokens"] for answer in answers[:4])
    assert found['mera_steered_tokens_total{task="demo_spam"}'] == steered
    assert found['mera_predicted_error_count{task="demo_spam",when="before"}'] == 4
    assert found['mera_predicted_error_count{task="demo_desk_a",when="after"}'] == 1
    assert not any("mera_predicted_error" in name and "sms_spam" in name for name in found)
    durations = {name: n for name, n in found.items() if name.startswith("mera_request_duration_seconds_count")}
    assert durations == {
        'mera_request_duration_seconds_count{outcome="answered"}': 8,
        'mera_request_duration_seconds_count{outcome="refused"}': 5,
    }
    assert (found["mera_prompt_tokens_count"], found["mera_generated_tokens_count"]) == (8, 8)
    assert found["mera_generated_tokens_sum"] == sum(detail["generated_tokens"] for detail in details)
    reasons = {name: n for name, n in found.items() if name.startswith("mera_finished_total")}
    ended = Counter(detail["finish_reason"] for detail in details)
    assert reasons == {f'mera_finished_total{{reason="{reason}"}}': n for reason, n in ended.items()}
    assert found["mera_time_to_first_token_seconds_count"] == 8
    assert found["mera_queue_seconds_count"] == 8
    assert found["mera_inter_token_seconds_count"] == sum(detail["generated_tokens"] - 1 for detail in details)
    assert (found["mera_requests_running"], found["mera_requests_waiting"]) == (0, 0)
    assert 0 <= found["mera_cache_used_ratio"] <= 1


async def test_what_is_served(client: httpx.AsyncClient, serving: Serving) -> None:
    found = await samples(client)
    probe = serving.catalog.latest["demo_spam"]
    assert (
        found[
            f'mera_probe_info{{alpha="{probe.alpha:.6g}",caution="",certified="true",probe="{probe.digest}",task="demo_spam"}}'
        ]
        == 1
    )
    models = [name for name in found if name.startswith("mera_model_info")]
    assert len(models) == 1
    assert 'dtype="float32"' in models[0]
    assert f'version="{version("mera-server")}"' in models[0]
    assert found["process_resident_memory_bytes"] > 0


async def test_shared_beginnings_are_counted(client: httpx.AsyncClient, serving: Serving) -> None:
    """Equal beginnings that no policy touches: all whole blocks of the second prompt but its last token."""
    text = "Claim your reward before Thursday. " * 12
    asked = {"inputs": text, "parameters": {"max_new_tokens": 1}}
    before = (await samples(client))["mera_prefix_cache_hit_tokens_total"]
    for _ in range(2):
        assert (await client.post("/generate", json=asked)).status_code == 200
    shared = (await samples(client))["mera_prefix_cache_hit_tokens_total"] - before
    tokens, page = len(serving.engine.encode(text)), serving.engine.config.page_size
    assert shared == (tokens - 1) // page * page > 0
