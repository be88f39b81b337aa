"""OpenAI's bodies: a field that is served changes what reaches the engine or the answer; any other changes nothing or is refused."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import replace
from typing import Any
from unittest.mock import ANY

import httpx
import pytest
from fastapi import FastAPI
from mera_server.loading import Serving
from mera_server.neutral import of_body
from mera_server.openai.schemas import ChatBody, CompletionBody, Message, OpenAIBody, StreamOptions

from merasteer.types import Generation, GenerationRequest, Policy, Sampling

MODEL = "mera-demo"
PROMPT = 'Message: "Win a holiday for two. Enter your code 2220 online." Is this ham or spam? Answer as desk B'
USER = {"role": "user", "content": PROMPT}
BASE: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": PROMPT, "model": MODEL, "max_tokens": 2, "temperature": 0.8, "seed": 5},
    "/v1/chat/completions": {"messages": [USER], "model": MODEL, "max_tokens": 2, "temperature": 0.8, "seed": 5},
}
BODIES: dict[str, type[OpenAIBody]] = {"/v1/completions": CompletionBody, "/v1/chat/completions": ChatBody}
ROUTES = tuple(BODIES)

DRAWN = Sampling(0.8, None, None, 5)
SERVED: dict[str, dict[str, tuple[Any, list[dict[str, Any]]]]] = {  # field -> its value, what each request has then
    "": {
        "max_tokens": (3, [{"max_new_tokens": 3}]),
        "n": (3, [{"sampling": replace(DRAWN, seed=seed)} for seed in (5, 6, 7)]),
        "temperature": (0.3, [{"sampling": replace(DRAWN, temperature=0.3)}]),
        "top_p": (0.5, [{"sampling": replace(DRAWN, top_p=0.5)}]),
        "top_k": (4, [{"sampling": replace(DRAWN, top_k=4)}]),
        "seed": (6, [{"sampling": replace(DRAWN, seed=6)}]),
        "stop": ("x", [{"stop": ("x",)}]),
        "ignore_eos": (True, [{"ignore_eos": True}]),
    },
    "/v1/completions": {"logprobs": (0, [{"logprobs": True}])},
    "/v1/chat/completions": {"logprobs": (True, [{"logprobs": True}])},
}
CHECKED = {  # in tests of their own, here or in test_openai.py
    "": {"model", "steering", "details", "stream", "stream_options"},
    "/v1/completions": {"prompt", "echo"},
    "/v1/chat/completions": {
        "messages",
        "inputs",
        "max_completion_tokens",
        "top_logprobs",
        "response_format",
        "continue_final_message",
        "add_generation_prompt",
    },
}
TAGS: dict[str, dict[str, Any]] = {
    "": {"user": "me"},
    "/v1/completions": {},
    "/v1/chat/completions": {"metadata": {"a": "b"}, "safety_identifier": "me", "prompt_cache_key": "k"},
}
NEUTRAL: dict[
    str, dict[str, tuple[tuple[Any, ...], Any]]
] = {  # field -> what it may be beside null, and a value that is refused
    "": {"frequency_penalty": ((0, 0.0), 0.5), "presence_penalty": ((0,), -1), "logit_bias": (({},), {"5": 1.0})},
    "/v1/completions": {"best_of": ((1,), 2), "suffix": (("",), "end")},
    "/v1/chat/completions": {
        "audio": ((), {"voice": "a", "format": "wav"}),
        "function_call": (("none",), "auto"),
        "functions": (([],), [{"name": "f"}]),
        "modalities": ((["text"],), ["text", "audio"]),
        "moderation": ((), {"model": "m"}),
        "prediction": ((), {"type": "content", "content": "x"}),
        "prompt_cache_options": ((), {"mode": "x"}),
        "prompt_cache_retention": ((), "24h"),
        "reasoning_effort": (("none",), "low"),
        "service_tier": (("auto", "default"), "flex"),
        "store": ((False,), True),
        "tool_choice": (("none", "auto"), "required"),
        "tools": (([],), [{"type": "function", "function": {"name": "f"}}]),
        "verbosity": (("medium",), "low"),
        "web_search_options": ((), {}),
    },
}
FREE = {"/v1/chat/completions": {"parallel_tool_calls": (True, False)}}  # neither value means anything without tools


def of(route: str, table: dict[str, Any]) -> Any:
    """A table's rows for a route: those of both and its own."""
    return {**table[""], **table[route]} if isinstance(table[""], dict) else table[""] | table[route]


@pytest.fixture
def submitted(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> list[GenerationRequest]:
    """What has reached the engine."""
    found: list[GenerationRequest] = []
    submit_all = serving.engine.submit_all

    def watched(requests: list[GenerationRequest], *more: Any) -> list[Future[Generation]]:
        found.extend(requests)
        return submit_all(requests, *more)

    monkeypatch.setattr(serving.engine, "submit_all", watched)
    return found


@pytest.fixture
def send(client: httpx.AsyncClient, submitted: list[GenerationRequest]) -> Any:
    """Posts the route's base body with some fields changed; what has reached the engine."""

    async def post(route: str, **changes: Any) -> list[GenerationRequest]:
        submitted.clear()
        response = await client.post(route, json={**BASE[route], **changes})
        assert response.status_code == 200, response.text
        return list(submitted)

    return post


async def refusal(client: httpx.AsyncClient, route: str, **changes: Any) -> tuple[int, str, str]:
    response = await client.post(route, json={**BASE[route], **changes})
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


@pytest.mark.parametrize("route", ROUTES)
def test_every_field_is_in_one_table(route: str) -> None:
    listed = {name for row in of_body(BODIES[route].__name__) for name in row.fields}
    known = [*of(route, SERVED), *of(route, CHECKED), *of(route, TAGS), *listed]
    assert sorted(known) == sorted(BODIES[route].model_fields)
    assert {*of(route, NEUTRAL), *FREE.get(route, ())} <= listed


@pytest.mark.parametrize("route", ROUTES)
async def test_each_served_field_reaches_the_engine(send: Any, route: str) -> None:
    [base] = await send(route)
    assert base.sampling == DRAWN
    for field, (value, requests) in of(route, SERVED).items():
        expected = [replace(base, **changes) for changes in requests]
        assert await send(route, **{field: value}) == expected != [base], field


@pytest.mark.parametrize("route", ROUTES)
async def test_the_other_served_fields(send: Any, serving: Serving, route: str) -> None:
    [base] = await send(route)
    probe = serving.catalog.latest["demo_spam"]
    [steered] = await send(
        route, steering={"task": "demo_spam", "alpha": 0.2, "positions": "all", "layers": [probe.active[0]]}
    )
    assert steered.policy == Policy(probe.digest, 0.2, 0.0, "all", (probe.active[0],))
    [*_, named] = await send(route, model=f"{MODEL}:demo_spam")  # behind the canaries, where nobody relied on them yet
    assert (named.policy, named.choice) == (Policy(probe.digest, probe.alpha), probe.task.choice)
    [traced] = await send(route, model=f"{MODEL}:demo_spam", details="trace")
    assert traced == replace(named, trace=True)
    other: dict[str, Any] = {"prompt": "Hello"} if route == ROUTES[0] else {"messages": [{**USER, "content": "Hello"}]}
    assert await send(route, **other) == [replace(base, prompt=serving.engine.encode("Hello"))]
    if route == ROUTES[1]:
        assert await send(route, max_completion_tokens=3, max_tokens=None) == [replace(base, max_new_tokens=3)]


@pytest.mark.parametrize("route", ROUTES)
async def test_tags_and_neutral_values_change_nothing(send: Any, route: str) -> None:
    base = await send(route)
    for field, value in of(route, TAGS).items():
        assert await send(route, **{field: value}) == base, field
    for field, (values, _) in of(route, NEUTRAL).items():
        for value in (None, *values):
            assert await send(route, **{field: value}) == base, field
    for field, values in FREE.get(route, {}).items():
        for value in (None, *values):
            assert await send(route, **{field: value}) == base, field


@pytest.mark.parametrize("route", ROUTES)
async def test_null_is_as_if_left_out(send: Any, route: str) -> None:
    needed = {name for name, field in BODIES[route].model_fields.items() if field.is_required()}
    given = {"max_tokens": None, "temperature": None, "seed": None}
    [base] = await send(route, **given)
    for field in set(BODIES[route].model_fields) - needed:
        [found] = await send(route, **given, **({} if field in given else {field: None}))
        assert replace(found, sampling=base.sampling) == base, field  # without a seed each draws its own
        assert found.sampling.greedy


@pytest.mark.parametrize("route", ROUTES)
async def test_each_unsupported_value_is_refused_by_name(
    client: httpx.AsyncClient, submitted: list[GenerationRequest], route: str
) -> None:
    for field, (_, value) in of(route, NEUTRAL).items():
        status, code, message = await refusal(client, route, **{field: value})
        assert (status, code) == (400, "unsupported"), field
        assert message.startswith(f"{field}: ")
    many = "logprobs" if route == ROUTES[0] else "top_logprobs"
    scored = {} if route == ROUTES[0] else {"logprobs": True}
    for value in (1, 5):  # sampled, not even the likeliest is known
        status, code, message = await refusal(client, route, **scored, **{many: value})
        assert (status, code) == (400, "unsupported")
        assert message.startswith(f"{many}: ")
    assert submitted == []


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        ({"of_tomorrow": 0.1}, "unknown_field", "of_tomorrow: unknown field; known fields: "),
        ({"min_p": 0.1}, "unsupported", "min_p: got a number that is not implemented here (draws are narrowed by"),
        ({"model": 7}, "invalid_input", "model: got an integer"),
        ({"model": "gpt"}, "unknown_model", "model: no such model"),
        ({"max_tokens": 0}, "invalid_input", "max_tokens: "),
        ({"max_tokens": 901}, "invalid_input", "max_tokens: above the limit of this server; give at most 900"),
        ({"n": 0}, "invalid_input", "n: "),
        ({"n": 129}, "invalid_input", "n: "),
        ({"temperature": -1}, "invalid_input", "temperature: "),
        ({"temperature": "hot"}, "invalid_input", "temperature: got a string"),
        ({"top_p": 0}, "invalid_input", "top_p: "),
        ({"top_k": -2}, "invalid_input", "top_k: "),
        ({"seed": -1}, "invalid_input", "seed: "),
        ({"stop": ""}, "invalid_input", "stop: "),
        ({"stop": ["a"] * 17}, "invalid_input", "stop: "),
        ({"stream": 1}, "invalid_input", "stream: "),
        ({"stream_options": {}}, "invalid_input", "stream_options: given without stream"),
        ({"stream": True, "stream_options": {"include": 1}}, "unknown_field", "stream_options.include: "),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "unsupported", "stream_options.include_obfuscation: "),
        ({"details": "all"}, "invalid_input", "details: "),
        ({"steering": {"task": "nothing"}}, "unknown_task", "steering.task: "),
        ({"steering": {"alpha": 0.5}}, "invalid_input", "steering.task: missing"),
        ({"model": f"{MODEL}:demo_spam", "steering": {"task": "demo_desk_a"}}, "invalid_input", "steering.task: another task"),
        ({"steering": {"task": "demo_spam", "positions": [999]}}, "invalid_input", "steering.positions: "),
    ],
)  # fmt: skip
async def test_wrong_values(
    client: httpx.AsyncClient,
    submitted: list[GenerationRequest],
    route: str,
    changes: dict[str, Any],
    code: str,
    names: str,
) -> None:
    status, found, message = await refusal(client, route, **changes)
    assert (status, found) == (404 if "unknown_" in code and code != "unknown_field" else 400, code)
    assert message.startswith(names)


@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        ({"prompt": ""}, "empty_inputs", "prompt: empty"),
        ({"prompt": []}, "invalid_input", "prompt: "),
        ({"prompt": [[]]}, "invalid_input", "prompt: "),
        ({"prompt": None}, "invalid_input", "prompt: got null"),
        ({"prompt": ["a", ""]}, "empty_inputs", "prompt[1]: empty"),
        ({"prompt": ["a", 1]}, "invalid_input", "prompt: "),
        ({"prompt": [-1]}, "invalid_input", "prompt: "),
        ({"prompt": [1, 700]}, "invalid_input", "prompt: a token id is out of vocabulary, which has 700"),
        ({"prompt": [[1], [2**70]]}, "invalid_input", "prompt[1]: a token id is out of vocabulary"),
        ({"prompt": ["a"] * 65, "n": 2}, "invalid_input", "n: makes more than 128 choices"),
        ({"prompt": ["a", "x " * 1024]}, "context_length_exceeded", "prompt[1]: "),
        ({"echo": True, "logprobs": 0}, "unsupported", "echo: "),
        ({"logprobs": True}, "invalid_input", "logprobs: got a boolean"),
        ({"messages": [USER]}, "unknown_field", "messages: "),
        ({"max_completion_tokens": 5}, "unknown_field", "max_completion_tokens: "),
    ],
)
async def test_wrong_completions(client: httpx.AsyncClient, changes: dict[str, Any], code: str, names: str) -> None:
    status, found, message = await refusal(client, ROUTES[0], **changes)
    assert (status, found) == (400, code)
    assert message.startswith(names)


@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        ({"messages": []}, "invalid_input", "messages: "),
        ({"messages": "Hello"}, "invalid_input", "messages: "),
        ({"messages": [{**USER, "content": ""}]}, "empty_inputs", "messages: all are empty"),
        ({"messages": [{**USER, "content": "x " * 1024}]}, "context_length_exceeded", "messages: "),
        ({"messages": [{**USER, "content": "x " * 1024}], "max_tokens": None}, "context_length_exceeded", "messages: "),
        ({"top_logprobs": 0}, "invalid_input", "top_logprobs: given without logprobs"),
        ({"max_completion_tokens": 901, "max_tokens": None}, "invalid_input", "max_completion_tokens: above the limit"),
        ({"max_completion_tokens": 5}, "invalid_input", "max_tokens: differs from max_completion_tokens"),
        ({"prompt": "x"}, "unknown_field", "prompt: "),
        ({"echo": True}, "unsupported", "echo: "),
    ],
)
async def test_wrong_chats(client: httpx.AsyncClient, changes: dict[str, Any], code: str, names: str) -> None:
    status, found, message = await refusal(client, ROUTES[1], **changes)
    assert (status, found) == (400, code)
    assert message.startswith(names)


@pytest.mark.parametrize(
    ("part", "code", "names"),
    [
        ({"role": ""}, "invalid_input", "messages[1].role: "),
        ({"role": "a role"}, "invalid_input", "messages[1].role: "),
        ({"role": "user\n"}, "invalid_input", "messages[1].role: "),
        ({"role": 7}, "invalid_input", "messages[1].role: "),
        ({"content": None}, "invalid_input", "messages[1].content: null is an assistant"),
        ({"tool_call_id": "a"}, "unsupported", "messages[1].tool_call_id: "),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "invalid_input", "messages[1].content"),
        ({"name": ""}, "invalid_input", "messages[1].name: "),
        ({"tool_calls": [{}]}, "unsupported", "messages[1].tool_calls: "),
        ({"mood": "good"}, "unknown_field", "messages[1].mood: unknown field; known fields: "),
    ],
)
async def test_wrong_messages(client: httpx.AsyncClient, part: dict[str, Any], code: str, names: str) -> None:
    status, found, message = await refusal(client, ROUTES[1], messages=[USER, {**USER, **part}])
    assert (status, found) == (400, code)
    assert message.startswith(names)


async def test_openapi_describes_bodies_answers_and_chunks(app: FastAPI) -> None:
    schema = app.openapi()
    shapes = schema["components"]["schemas"]
    for route in ROUTES:
        post = schema["paths"][route]["post"]
        asked = post["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert set(shapes[asked]["properties"]) == set(BODIES[route].model_fields)
        answered = post["responses"]["200"]["content"]
        assert set(answered) == {"application/json", "text/event-stream"}
        told, done = answered["text/event-stream"]["itemSchema"]["properties"]["data"]["anyOf"]
        chunk, error = told["contentSchema"]["anyOf"]
        for described in (answered["application/json"]["schema"], chunk):
            assert "choices" in shapes[described["$ref"].rpartition("/")[2]]["properties"]
        assert (error["$ref"].rpartition("/")[2], done) == ("OpenAIErrorReply", {"const": "[DONE]"})
    assert {Message.__name__, StreamOptions.__name__} <= set(shapes)
    assert {"/v1/models", "/v1/models/{name}"} <= set(schema["paths"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
async def test_an_answer_goes_on_behind_its_end_where_a_benchmark_asks_for_it(
    client: httpx.AsyncClient, route: str, stream: bool
) -> None:
    async def ask(**more: Any) -> tuple[str, str, int]:
        asked = {"prompt": PROMPT} if route == ROUTES[0] else {"messages": [{"role": "user", "content": PROMPT}]}
        counted = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        response = await client.post(route, json={**asked, "max_tokens": 60, **counted, **more})
        assert response.status_code == 200, response.text
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n")] if stream else [response.text]
        parts = [json.loads(line) for line in lines if line.startswith("{")]
        choices = [choice for part in parts for choice in part["choices"]]
        said = [
            choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content")
            for choice in choices
        ]
        return (
            "".join(text or "" for text in said),
            choices[-1]["finish_reason"],
            parts[-1]["usage"]["completion_tokens"],
        )

    text, reason, count = await ask()
    assert (reason, count < 60) == ("stop", True)
    assert await ask(ignore_eos=False) == (text, reason, count)
    longer, reason, count = await ask(ignore_eos=True)
    assert (longer.startswith(text), reason, count) == (True, "length", 60)
    assert await ask(ignore_eos=True, stop=[longer[len(text) + 3]]) == (
        longer[: longer.index(longer[len(text) + 3])],
        "stop",
        ANY,
    )


async def test_a_tasks_answer_ends_as_it_did_when_it_was_tested(client: httpx.AsyncClient) -> None:
    status, found, message = await refusal(client, ROUTES[0], model="mera-demo:demo_spam", ignore_eos=True)
    assert (status, found) == (400, "unsupported")
    assert message.startswith("ignore_eos: a task's answers end")
    native = {"inputs": PROMPT, "steering": {"task": "demo_spam"}, "parameters": {"ignore_eos": True}}
    response = await client.post("/generate", json=native)
    assert (response.status_code, response.json()["error"]["message"][:22]) == (422, "parameters.ignore_eos:")
