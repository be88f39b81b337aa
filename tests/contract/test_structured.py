"""`response_format` with a schema that enumerates a task's labels: the task's own choice, as JSON; any other schema is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from pydantic import BaseModel

TASK = "mera-demo:demo_spam"
PROMPT = 'Message: "Win a holiday for two. Enter your code 2220 online." Is this ham or spam? Answer as desk B'
CHAT: Any = [{"role": "user", "content": PROMPT}]
ENUM = {"type": "string", "enum": ["ham", "spam"]}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"verdict": ENUM},
    "required": ["verdict"],
    "additionalProperties": False,
}


def formatted(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


class Kind(StrEnum):
    ham = "ham"
    spam = "spam"


class Named(BaseModel):
    label: Kind


class Spelt(BaseModel):
    """With a description."""

    label: Literal["spam", "ham"]


def test_a_schema_of_the_labels_is_answered_by_the_tasks_choice(ai: openai.OpenAI) -> None:
    plain = ai.chat.completions.create(model=TASK, messages=CHAT).choices[0]
    asked: Any = {"model": TASK, "messages": CHAT, "response_format": formatted(SCHEMA)}
    for more in ({}, {"max_tokens": 1}, {"max_tokens": 9}, {"stop": "s"}):
        found = ai.chat.completions.create(**asked, **more).choices[0]
        assert json.loads(found.message.content or "") == {"verdict": "spam"}
        assert found.finish_reason == "stop"
        assert found.mera == plain.mera  # type: ignore[attr-defined]


def test_a_schema_is_streamed(ai: openai.OpenAI) -> None:
    asked: Any = {"model": TASK, "messages": CHAT, "response_format": formatted(SCHEMA)}
    chunks = [chunk.choices[0] for chunk in ai.chat.completions.create(**asked, stream=True)]
    assert json.loads("".join(chunk.delta.content or "" for chunk in chunks)) == {"verdict": "spam"}
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize("kind", [Named, Spelt])
def test_openais_parse_reads_it(ai: openai.OpenAI, kind: Any) -> None:
    reply = ai.chat.completions.parse(model=TASK, messages=CHAT, response_format=kind)
    assert reply.choices[0].message.parsed == kind(label="spam")


def test_hugging_faces_client_has_a_form_of_its_own(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    with InferenceClient(address) as client:
        found = client.chat_completion(CHAT, model=TASK, response_format=formatted(SCHEMA))  # type: ignore[arg-type]
    assert json.loads(found.choices[0].message.content or "") == {"verdict": "spam"}


def test_choices_are_drawn_apart(ai: openai.OpenAI) -> None:
    asked: Any = {"model": TASK, "messages": CHAT, "response_format": formatted(SCHEMA), "temperature": 3.0, "seed": 1}
    reply = ai.chat.completions.create(**asked, n=12, extra_body={"steering": {"method": "none"}})
    answers = {choice.message.content for choice in reply.choices}
    assert answers == {'{"verdict": "ham"}', '{"verdict": "spam"}'}


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    "given",
    [
        {"type": "json_object"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": "x"},
        {"type": "regex", "value": "x"},
        {"type": ["text"]},
        {},
        formatted(None),
        formatted({**SCHEMA, "type": "array"}),
        formatted({**SCHEMA, "properties": {**SCHEMA["properties"], "why": {"type": "string"}}}),
        formatted({**SCHEMA, "properties": {}}),
        formatted({**SCHEMA, "required": ["other"]}),
        formatted({**SCHEMA, "minProperties": 2}),
        formatted({**SCHEMA, "properties": {"verdict": {"type": "string"}}}),
        formatted({**SCHEMA, "properties": {"verdict": {**ENUM, "pattern": "^h"}}}),
        formatted({**SCHEMA, "properties": {"verdict": {"enum": ["ham", 3]}}}),
        formatted({**SCHEMA, "properties": {"verdict": {"$ref": "#/$defs/absent"}}}),
        formatted({**SCHEMA, "properties": {"verdict": {"$ref": 7}}}),
        formatted({**SCHEMA, "properties": {"verdict": {"type": "string", "enum": ["ham"]}}}),
        formatted({**SCHEMA, "properties": {"verdict": {"type": "string", "enum": ["ham", "spam", "eggs"]}}}),
    ],
)
async def test_any_other_schema_is_refused_by_name(client: httpx.AsyncClient, given: Any) -> None:
    body = {"model": TASK, "messages": CHAT, "response_format": given}
    response = await client.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported")
    assert error["param"].startswith("response_format")
    assert "eggs" not in error["message"]


async def test_a_schema_needs_a_task(client: httpx.AsyncClient) -> None:
    body = {"model": "mera-demo", "messages": CHAT, "response_format": formatted(SCHEMA)}
    error = (await client.post("/v1/chat/completions", json=body)).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported", "response_format")
    assert "<model>:<task>" in error["message"]
    steered = {**body, "steering": {"task": "demo_spam"}}
    found = (await client.post("/v1/chat/completions", json=steered)).json()["choices"][0]
    assert found["message"]["content"] == '{"verdict": "spam"}'
