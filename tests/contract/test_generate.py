"""`POST /generate`, field for field, with the real engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from mera_server.loading import Serving

from merasteer.tasks import render

Ask = Callable[..., Awaitable[dict[str, Any]]]

FIELDS = {"desk": "B", "text": "Win a holiday for two. Enter your code 2220 online."}
PROMPT = 'Message: "Win a holiday for two. Enter your code 2220 online." Is this ham or spam? Answer as desk B'
ZEROS = {"tokens": 0, "steered_tokens": 0, "cells": 0, "steered_cells": 0, "mean_shift": 0.0, "max_shift": 0.0}
KEYS = {
    "task", "probe", "method", "decision", "reason", "alpha", "predicted_error", "steering", "guarantee", "answer", "trace",
}  # fmt: skip


async def test_without_a_task_nothing_is_steered(ask: Ask, serving: Serving) -> None:
    found = await ask(parameters={"max_new_tokens": 3})
    assert set(found) == {"generated_text", "details", "mera"}
    details = found["details"]
    assert set(details) == {"finish_reason", "prompt_tokens", "generated_tokens", "seed"}
    assert details["prompt_tokens"] == len(serving.engine.encode(PROMPT))
    assert details["finish_reason"] in ("length", "eos_token")
    assert details["seed"] is None
    nulls = dict.fromkeys(("task", "probe", "reason", "alpha", "predicted_error", "guarantee", "answer", "trace"))
    assert found["mera"] == {**nulls, "method": "none", "decision": "off", "steering": ZEROS}


async def test_a_certified_task(ask: Ask, serving: Serving) -> None:
    probe = serving.catalog.latest["demo_spam"]
    found = await ask(FIELDS, "demo_spam", parameters={"max_new_tokens": 1})
    mera = found["mera"]
    assert set(mera) == KEYS
    assert (mera["task"], mera["probe"], mera["method"], mera["alpha"]) == (
        "demo_spam",
        probe.digest,
        "mera",
        probe.alpha,
    )
    assert mera["reason"] is None
    assert mera["trace"] is None
    counts, error = mera["steering"], mera["predicted_error"]
    assert mera["decision"] == ("steered" if counts["steered_cells"] else "not_needed")
    assert counts["tokens"] == found["details"]["generated_tokens"] == 1
    assert counts["cells"] == len(probe.active)
    assert error["position"] in ("answer", "last_prompt")
    if error["before"] > probe.alpha:
        assert error["after"] <= probe.alpha + 1e-5
    guarantee = mera["guarantee"]
    assert set(guarantee) == {
        *("certified", "why", "test", "gain", "lower_bound", "epsilon", "delta", "level", "attempt", "n")
    }
    assert (guarantee["certified"], guarantee["why"]) == (True, None)
    assert guarantee["n"] == 250
    assert guarantee["gain"] > 0
    answer = mera["answer"]
    assert set(answer["probabilities"]) == {"ham", "spam"}
    assert abs(sum(answer["probabilities"].values()) - 1) < 1e-6
    assert found["generated_text"] == f" {answer['label']}"
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)


async def test_an_object_and_its_rendering_give_one_answer(ask: Ask, serving: Serving) -> None:
    rendered = render(serving.catalog.latest["demo_spam"].task.template, FIELDS)
    assert await ask(FIELDS, "demo_spam") == await ask(rendered, "demo_spam")


async def test_steering_changes_an_answer(ask: Ask) -> None:
    """Over several prompts: where steering moved something, the reading fell to α."""
    moved = 0
    for code in range(2220, 2228):
        fields = {**FIELDS, "text": f"Win a holiday for two. Enter your code {code} online."}
        steered = (await ask(fields, "demo_spam", steering={"alpha": 0.05}))["mera"]
        plain = (await ask(fields, "demo_spam", steering={"method": "none"}))["mera"]
        assert plain["predicted_error"]["before"] == plain["predicted_error"]["after"]
        if steered["decision"] == "steered":
            moved += 1
            assert 0 < steered["steering"]["mean_shift"] <= steered["steering"]["max_shift"]
            assert steered["answer"]["probabilities"] != plain["answer"]["probabilities"]
    assert moved


async def test_none_reads_without_moving(ask: Ask, serving: Serving) -> None:
    mera = (await ask(FIELDS, "demo_spam", steering={"method": "none"}))["mera"]
    assert (mera["decision"], mera["reason"], mera["alpha"], mera["steering"]) == ("off", None, None, ZEROS)
    assert mera["predicted_error"]["after"] == mera["predicted_error"]["before"]
    assert mera["probe"] == serving.catalog.latest["demo_spam"].digest
    assert mera["answer"]["label"] in ("ham", "spam")
    assert mera["guarantee"]["certified"] is False
    assert mera["guarantee"]["why"] == "method none is not what was certified"


async def test_an_uncertified_artifact_abstains(ask: Ask) -> None:
    inputs = {"text": FIELDS["text"]}
    found = await ask(inputs, "demo_desk_a")
    mera = found["mera"]
    assert (mera["decision"], mera["reason"], mera["alpha"], mera["steering"]) == (
        "abstained",
        "uncertified",
        None,
        ZEROS,
    )
    assert mera["predicted_error"]["after"] == mera["predicted_error"]["before"]
    assert mera["guarantee"]["certified"] is False
    assert mera["guarantee"]["why"] == "the artifact is not certified"
    untouched = await ask(inputs, "demo_desk_a", steering={"method": "none"})
    assert untouched["generated_text"] == found["generated_text"]
    assert untouched["mera"]["answer"] == mera["answer"]


async def test_an_override_steers_without_a_guarantee(ask: Ask) -> None:
    mera = (await ask({"text": FIELDS["text"]}, "demo_desk_a", steering={"alpha": 0.01}))["mera"]
    assert (mera["decision"], mera["alpha"]) == ("steered", 0.01)
    assert mera["guarantee"]["why"] == "the artifact is not certified; alpha overridden"


async def test_a_task_without_an_artifact(ask: Ask) -> None:
    mera = (await ask({"text": "hello"}, "sms_spam"))["mera"]
    assert (mera["decision"], mera["reason"]) == ("abstained", "no_probe")
    assert [mera[name] for name in ("probe", "alpha", "predicted_error", "guarantee")] == [None] * 4
    assert mera["steering"] == ZEROS
    assert set(mera["answer"]["probabilities"]) == {"ham", "spam"}


@pytest.mark.parametrize("method", ["additive", "contrastive"])
async def test_fixed_strength_methods(ask: Ask, serving: Serving, method: str) -> None:
    if method not in serving.catalog.latest["demo_spam"].baselines:
        pytest.skip("the artifact has no such vectors")
    weak = (await ask(FIELDS, "demo_spam", steering={"method": method, "strength": 0.01}))["mera"]
    strong = (await ask(FIELDS, "demo_spam", steering={"method": method}))["mera"]
    assert (weak["decision"], weak["alpha"], weak["guarantee"]["certified"]) == ("steered", None, False)
    assert weak["steering"]["steered_cells"] == weak["steering"]["cells"] > 0
    assert strong["steering"]["mean_shift"] > weak["steering"]["mean_shift"]


@pytest.mark.parametrize("budget", [{}, {"parameters": {"max_new_tokens": 2}}])
async def test_positions_and_layers(ask: Ask, serving: Serving, budget: dict[str, Any]) -> None:
    """Positions end where the label does, which has one token here: what a larger budget adds is not steered."""
    active = serving.catalog.latest["demo_spam"].active
    every = await ask(FIELDS, "demo_spam", steering={"positions": "all"}, **budget)
    details, counts = every["details"], every["mera"]["steering"]
    assert details["generated_tokens"] == (2 if budget else 1)
    assert counts["tokens"] == details["prompt_tokens"]
    assert counts["cells"] == counts["tokens"] * len(active)
    one = await ask(FIELDS, "demo_spam", steering={"layers": [active[0]]}, **budget)
    assert one["mera"]["steering"]["cells"] == 1
    assert one["mera"]["guarantee"]["why"] == "layers overridden"


async def test_the_last_position_and_listed_ones(ask: Ask, serving: Serving) -> None:
    active = len(serving.catalog.latest["demo_spam"].active)
    for positions, tokens in (("last", 1), ([0], 1), ([3, 0, 1], 3)):
        steering = {"positions": positions, "alpha": 0.001}
        found = await ask(FIELDS, "demo_spam", steering=steering, parameters={"max_new_tokens": 3})
        counts = found["mera"]["steering"]
        assert (counts["tokens"], counts["cells"]) == (tokens, tokens * active)
        what = (
            "alpha" if positions == "last" else "alpha, positions"
        )  # a label of one token is chosen at the last position
        assert found["mera"]["guarantee"]["why"] == f"{what} overridden"
    everywhere = list(range(found["details"]["prompt_tokens"]))
    listed = await ask(FIELDS, "demo_spam", steering={"positions": everywhere}, parameters={"max_new_tokens": 1})
    named = await ask(FIELDS, "demo_spam", steering={"positions": "all"}, parameters={"max_new_tokens": 1})
    assert listed == named


async def test_a_position_beyond_the_prompt(client: httpx.AsyncClient, serving: Serving) -> None:
    beyond = len(serving.engine.encode(PROMPT))
    for position, status in ((beyond - 1, 200), (beyond, 422)):
        body = {"inputs": PROMPT, "steering": {"task": "demo_spam", "positions": [0, position]}}
        response = await client.post("/generate", json=body)
        assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == "invalid_input"
    assert response.json()["error"]["message"].startswith("steering.positions: ")


async def test_why_names_sampling_and_prompt(ask: Ask) -> None:
    sampled = await ask(FIELDS, "demo_spam", parameters={"temperature": 0.8, "seed": 3})
    assert sampled["mera"]["guarantee"]["why"] == "decoding is sampled, not greedy"
    other = await ask("Is this spam? Answer:", "demo_spam")
    assert other["mera"]["guarantee"]["why"] == "the prompt does not match the task's template"


async def test_a_probe_is_chosen_by_prefix(ask: Ask, serving: Serving) -> None:
    digest = serving.catalog.latest["demo_spam"].digest
    mera = (await ask(FIELDS, steering={"probe": digest[:12]}))["mera"]
    assert (mera["task"], mera["probe"]) == ("demo_spam", digest)


async def test_seeds_repeat(ask: Ask) -> None:
    sampled = {"max_new_tokens": 12, "temperature": 1.5}
    first = await ask(parameters={**sampled, "seed": 11})
    assert first == await ask(parameters={**sampled, "seed": 11})
    assert first["details"]["seed"] == 11
    drawn = await ask(parameters=sampled)
    seed = drawn["details"]["seed"]
    assert drawn == await ask(parameters={**sampled, "seed": seed})


async def test_details_add_tokens(ask: Ask, serving: Serving) -> None:
    found = await ask(parameters={"max_new_tokens": 4, "details": True, "return_full_text": True})
    details = found["details"]
    assert details["prefill"] == []
    assert len(details["tokens"]) == details["generated_tokens"]
    for token in details["tokens"]:
        assert set(token) == {"id", "text", "logprob", "special"}
        assert token["logprob"] <= 1e-6
        assert token["text"] == serving.engine.decode((token["id"],))
        assert token["special"] == (token["id"] in serving.special)
    assert found["generated_text"].startswith(PROMPT)


async def test_what_mera_tells_is_governed_by_details(ask: Ask, serving: Serving) -> None:
    brief = (await ask(FIELDS, "demo_spam", details="none"))["mera"]
    assert set(brief) == {"decision", "reason", "alpha"}
    traced = await ask(FIELDS, "demo_spam", details="trace")
    trace = traced["mera"]["trace"]
    assert len(trace) == traced["details"]["generated_tokens"]
    for entry in trace:
        assert set(entry) == {"id", "text", "before", "after", "shift"}
        assert all(len(entry[name]) == serving.engine.loaded.layers for name in ("before", "after", "shift"))
    report = traced["mera"]["predicted_error"]
    assert trace[0]["before"][report["layer"]] == pytest.approx(report["before"], abs=1e-5)
    assert (await ask(PROMPT, details="trace"))["mera"]["trace"] == []


async def test_stop_strings(ask: Ask) -> None:
    found = await ask("Message:", parameters={"max_new_tokens": 200, "stop": ["Answer"]})
    if found["details"]["finish_reason"] == "stop_sequence":
        assert "Answer" not in found["generated_text"]
    assert (await ask("Desk A.", parameters={"max_new_tokens": 3, "stop": ["no such thing"]}))["details"][
        "generated_tokens"
    ] == 3


async def test_the_request_id_is_kept(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate", json={"inputs": PROMPT}, headers={"X-Request-Id": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    assert response.headers["content-type"] == "application/json"
