"""Every field that a body may hold changes what reaches the engine, or what is answered; the tables here name every field there is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.loading import Serving
from mera_server.neutral import of_body
from mera_server.schemas import ClassifyBody, GenerateBody, Override, Parameters, Steering, StreamBody
from mera_server.settings import Settings
from pydantic import BaseModel

from merasteer.types import GenerationRequest, Policy, Sampling

FIELDS = {"desk": "B", "text": "Win a holiday for two. Enter your code 2220 online."}
INPUTS = {"text": FIELDS["text"]}
DESK_A = {"task": "demo_desk_a", "alpha": 0.01}

Changes = dict[str, Any]


@dataclass
class Captor:
    """The real engine; `requests` are those that reached it, `watched` whether their tokens were asked for."""

    engine: Any
    requests: list[GenerationRequest] = field(default_factory=list)
    watched: list[bool] = field(default_factory=list)

    def submit_all(self, requests: Any, watchers: Any, named: Any) -> Any:
        self.requests += requests
        self.watched += [False] * len(requests) if watchers is None else [watcher is not None for watcher in watchers]
        return self.engine.submit_all(requests, watchers, named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


@pytest.fixture
def captor(serving: Serving) -> Captor:
    return Captor(serving.engine)


@pytest.fixture
def app(settings: Settings, serving: Serving, captor: Captor) -> FastAPI:
    app = create_app(settings)
    app.state.runtime._serving = Serving(captor, serving.catalog, serving.special)  # type: ignore[arg-type]
    return app


@pytest.fixture
def reaches(client: httpx.AsyncClient, captor: Captor) -> Any:
    """What a body brings to the engine."""

    async def post(route: str, body: dict[str, Any]) -> list[GenerationRequest]:
        captor.requests.clear()
        response = await client.post(route, json=body)
        assert response.status_code == 200, response.text
        return list(captor.requests)

    return post


def differing(one: GenerationRequest, other: GenerationRequest) -> Changes:
    """The parts of `other` that `one` has otherwise; of policy and sampling, the parts of those. A greedy seed is no part."""
    found: Changes = {}
    for part in fields(GenerationRequest):
        before, after = getattr(one, part.name), getattr(other, part.name)
        if before == after or (part.name == "sampling" and before.greedy and after.greedy):
            continue
        if isinstance(before, Policy | Sampling) and isinstance(after, type(before)):
            found |= {
                p.name: getattr(after, p.name)
                for p in fields(before)
                if getattr(after, p.name) != getattr(before, p.name)
            }
        else:
            found[part.name] = after
    return found


PARAMETERS: dict[str, tuple[Any, Changes]] = {
    "max_new_tokens": (5, {"max_new_tokens": 5}),
    "temperature": (0.5, {"temperature": 0.5}),
    "top_p": (0.7, {"top_p": 0.7}),
    "top_k": (3, {"top_k": 3}),
    "stop": (["x", "y"], {"stop": ("x", "y")}),
    "ignore_eos": (True, {"ignore_eos": True}),
    "seed": (9, {"seed": 9}),
    "details": (True, {"logprobs": True}),
}
STEERING: dict[str, tuple[Any, Changes]] = {
    "alpha": (0.2, {"alpha": 0.2}),
    "positions": ([0, 2], {"positions": (0, 2)}),
    "layers": ([3], {"layers": (3,)}),
}
ANSWERED = {"return_full_text", "do_sample"}  # in tests of their own
NEUTRAL = {  # a value of each parameter that is refused
    "best_of": 2, "repetition_penalty": 1.2, "frequency_penalty": 0.1, "typical_p": 0.9, "truncate": 5,
    "watermark": True, "decoder_input_details": True, "top_n_tokens": 3, "grammar": {"type": "json", "value": {}},
    "adapter_id": "x", "stop_sequences": ["x"],
}  # fmt: skip
ROUTES = ("/generate", "/generate_stream", "/")


def listed(body: str) -> list[str]:
    """The fields that the table of neutral values gives a body."""
    return [name for row in of_body(body) for name in row.fields]


def test_the_tables_hold_every_field() -> None:
    assert set(Parameters.model_fields) == {*PARAMETERS, *ANSWERED, *listed("Parameters")}
    assert set(NEUTRAL) <= set(listed("Parameters"))
    assert set(Override.model_fields) == {*STEERING, "probe", "method", "strength"}
    assert set(Steering.model_fields) == {*Override.model_fields, "task"}
    assert set(GenerateBody.model_fields) == {"inputs", "parameters", "steering", "details", "stream", "options"}
    assert set(ClassifyBody.model_fields) == {"task", "inputs", "steering"}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", PARAMETERS)
async def test_parameters(reaches: Any, route: str, name: str) -> None:
    value, changes = PARAMETERS[name]
    steady = {"max_new_tokens": 2, "temperature": 1.0, "seed": 1}
    [plain] = await reaches(route, {"inputs": "Desk A.", "parameters": steady})
    [found] = await reaches(route, {"inputs": "Desk A.", "parameters": {**steady, name: value}})
    streams = route == "/generate_stream"  # each of its events has a logprob
    assert differing(plain, found) == ({} if streams and name == "details" else changes)
    assert plain.logprobs is streams


@pytest.mark.parametrize("route", ROUTES)
async def test_inputs_details_and_full_text(
    reaches: Any, client: httpx.AsyncClient, serving: Serving, route: str
) -> None:
    [found] = await reaches(route, {"inputs": "Desk A."})
    assert found.prompt == serving.engine.encode("Desk A.")
    body = {"inputs": FIELDS, "steering": {"task": "demo_spam"}, "parameters": {"max_new_tokens": 1}}
    [summary] = await reaches(route, body)
    [traced] = await reaches(route, {**body, "details": "trace"})
    assert differing(summary, traced) == {"trace": True}
    shown = [await client.post(route, json={**body, "details": details}) for details in ("none", "summary", "trace")]
    assert len({response.text for response in shown}) == 3
    full = {"parameters": {"max_new_tokens": 1, "return_full_text": True}}
    assert (await client.post(route, json=body)).text != (await client.post(route, json={**body, **full})).text


@pytest.mark.parametrize("route", [*ROUTES, "/classify"])
@pytest.mark.parametrize("name", STEERING)
async def test_steering(reaches: Any, route: str, name: str) -> None:
    value, changes = STEERING[name]

    def body(**more: Any) -> dict[str, Any]:
        if route == "/classify":
            return {"task": "demo_desk_a", "inputs": [INPUTS], "steering": {"alpha": 0.01, **more}}
        return {"inputs": INPUTS, "steering": {**DESK_A, **more}}

    [plain] = await reaches(route, body())
    [found] = await reaches(route, body(**{name: value}))
    assert differing(plain, found) == changes


@pytest.mark.parametrize("route", [*ROUTES, "/classify"])
async def test_task_probe_method_and_strength(reaches: Any, serving: Serving, route: str) -> None:
    def body(task: str | None, inputs: Any, **steering: Any) -> dict[str, Any]:
        if route == "/classify":
            return {"task": task, "inputs": [inputs], "steering": steering}
        return {"inputs": inputs, "steering": {"task": task, **steering}}

    digest = serving.catalog.latest["demo_spam"].digest
    [spam] = await reaches(route, body("demo_spam", FIELDS))
    [desk] = await reaches(route, body("demo_desk_a", INPUTS))
    assert spam.policy is not None
    assert desk.policy is not None
    assert spam.policy.vectors == digest != desk.policy.vectors
    [probed] = await reaches(route, body("demo_spam" if route == "/classify" else None, FIELDS, probe=digest[:12]))
    assert probed.policy == spam.policy
    [read] = await reaches(route, body("demo_spam", FIELDS, method="none"))
    assert differing(spam, read) == {"alpha": None}
    method = "additive" if "additive" in serving.catalog.latest["demo_spam"].baselines else "contrastive"
    [fixed] = await reaches(route, body("demo_spam", FIELDS, method=method))
    [weak] = await reaches(route, body("demo_spam", FIELDS, method=method, strength=0.25))
    assert differing(fixed, weak) == {"strength": 0.25}


async def test_stream_asks_for_tokens(reaches: Any, captor: Captor) -> None:
    for route, stream in (
        ("/generate", True),
        ("/generate", False),
        ("/", True),
        ("/", None),
        ("/generate_stream", None),
    ):
        await reaches(route, {"inputs": "Desk A.", "parameters": {"max_new_tokens": 1}, "stream": stream})
    assert captor.watched == [True, False, True, False, True]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", NEUTRAL)
async def test_what_is_not_implemented_is_refused(
    client: httpx.AsyncClient, captor: Captor, route: str, name: str
) -> None:
    body = {"inputs": "Desk A.", "parameters": {name: NEUTRAL[name]}}
    response = await client.post(route, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "unsupported")
    assert f"parameters.{name}: " in response.json()["error"]["message"]
    assert captor.requests == []


@pytest.mark.parametrize(
    ("route", "body", "path"),
    [
        *[(route, {"inputs": "x", "zz": 1}, "zz") for route in ROUTES],
        *[(route, {"inputs": "x", "parameters": {"zz": 1}}, "parameters.zz") for route in ROUTES],
        *[(route, {"inputs": "x", "steering": {"zz": 1}}, "steering.zz") for route in ROUTES],
        ("/classify", {"task": "demo_spam", "inputs": [FIELDS], "zz": 1}, "zz"),
        ("/classify", {"task": "demo_spam", "inputs": [FIELDS], "parameters": {}}, "parameters"),
        ("/classify", {"task": "demo_spam", "inputs": [FIELDS], "stream": True}, "stream"),
        ("/classify", {"task": "demo_spam", "inputs": [FIELDS], "steering": {"zz": 1}}, "steering.zz"),
        ("/classify", {"task": "demo_spam", "inputs": [FIELDS], "steering": {"task": "demo_spam"}}, "steering.task"),
    ],
)
async def test_unknown_fields_are_refused(
    client: httpx.AsyncClient, captor: Captor, route: str, body: dict[str, Any], path: str
) -> None:
    response = await client.post(route, content=json.dumps(body))
    assert (response.status_code, response.json()["error"]["code"]) == (422, "unknown_field")
    assert response.json()["error"]["message"].startswith(f"{path}: unknown field")
    assert captor.requests == []


@pytest.mark.parametrize("model", [GenerateBody, StreamBody, ClassifyBody, Parameters, Override, Steering])
def test_no_body_takes_unknown_fields(model: type[BaseModel]) -> None:
    assert model.model_json_schema()["additionalProperties"] == {"type": "null"}


@pytest.mark.parametrize("route", ROUTES)
async def test_do_sample_draws_at_temperature_1_where_none_is_given(reaches: Any, route: str) -> None:
    """As Hugging Face's libraries mean it; false leaves it to the temperature."""
    for given, temperature in (
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.3}, 0.3),
        ({"do_sample": False, "temperature": 0.3}, 0.3),
        ({"do_sample": False}, None),
    ):
        [found] = await reaches(route, {"inputs": "Desk A.", "parameters": {"max_new_tokens": 2, **given}})
        assert found.sampling.temperature == temperature


@pytest.mark.parametrize("route", ROUTES)
async def test_null_is_taken_for_every_field_known_or_not(reaches: Any, route: str) -> None:
    steady = {"max_new_tokens": 2}
    [plain] = await reaches(route, {"inputs": "Desk A.", "parameters": steady})
    names = [name for name in Parameters.model_fields if name not in steady]
    nulls = {**dict.fromkeys([*names, "of_tomorrow"]), **steady}
    given = {
        "inputs": "Desk A.",
        "parameters": nulls,
        "steering": {"of_tomorrow": None, "task": None},
        "of_tomorrow": None,
    }
    [found] = await reaches(route, {**given, "details": None, "stream": None, "options": None})
    assert differing(plain, found) == {}


async def test_all_tokens_may_be_drawn_from_in_three_spellings(reaches: Any) -> None:
    for value in (0, -1, None):
        [found] = await reaches("/generate", {"inputs": "x", "parameters": {"top_k": value, "temperature": 1.0}})
        assert found.sampling.top_k is None
