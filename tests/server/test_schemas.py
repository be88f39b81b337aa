"""What a body may hold: neutral values of unimplemented parameters pass, anything else is refused by name."""

from __future__ import annotations

import json
from typing import Annotated

import pytest
from mera_server.errors import parse
from mera_server.schemas import DEFAULT_MAX_NEW_TOKENS, ClassifyBody, GenerateBody, Parameters, StreamBody, Strict
from pydantic import Field

from merasteer.errors import InvalidInput, MeraError, NotJson, UnknownField, Unsupported

NEUTRAL = {
    "best_of": 1, "repetition_penalty": 1.0, "frequency_penalty": 0.0, "typical_p": 1.0, "do_sample": False, "truncate": None,
    "watermark": False, "decoder_input_details": False, "top_n_tokens": 0, "grammar": None, "adapter_id": None,
    "stop_sequences": [],
}  # fmt: skip
ACTIVE = {
    "best_of": 2, "repetition_penalty": 1.2, "frequency_penalty": 0.1, "typical_p": 0.9, "truncate": 5,
    "watermark": True, "decoder_input_details": True, "top_n_tokens": 3, "grammar": {"type": "json"}, "adapter_id": "x",
    "stop_sequences": ["x"],
}  # fmt: skip


def test_the_smallest_body() -> None:
    body = GenerateBody.model_validate({"inputs": "x"})
    assert body.parameters is None
    assert Parameters().max_new_tokens is None  # a task's own; without one:
    assert DEFAULT_MAX_NEW_TOKENS == 16


@pytest.mark.parametrize("name", Parameters.model_fields)
def test_null_is_always_accepted(name: str) -> None:
    GenerateBody.model_validate({"inputs": "x", "parameters": {name: None}})


def test_neutral_values_are_accepted() -> None:
    GenerateBody.model_validate({"inputs": "x", "parameters": NEUTRAL, "stream": False})
    GenerateBody.model_validate({"inputs": "x", "parameters": {"repetition_penalty": 1, "typical_p": 1}})


@pytest.mark.parametrize("name", ACTIVE)
def test_other_values_are_unsupported(name: str) -> None:
    with pytest.raises(Unsupported, match=f"parameters.{name}: "):
        parse(GenerateBody, json.dumps({"inputs": "x", "parameters": {name: ACTIVE[name]}}).encode())


def test_only_one_route_always_streams() -> None:
    for stream in (True, False, None):
        assert parse(GenerateBody, json.dumps({"inputs": "x", "stream": stream}).encode()).stream is stream
    assert parse(StreamBody, b'{"inputs": "x", "stream": true}').stream
    with pytest.raises(
        Unsupported, match="stream: got a boolean that is not implemented here; give true or null; /gen"
    ):
        parse(StreamBody, b'{"inputs": "x", "stream": false}')


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (b"", NotJson, "body: not JSON"),
        (b"\xff\xfe", NotJson, "body: not JSON"),
        (b"[" * 4000, NotJson, "body: not JSON"),
        (b"[]", InvalidInput, "body: got an array; give a JSON object"),
        (b"{}", InvalidInput, "inputs: missing; give a string"),
        (b'{"inputs": 3}', InvalidInput, "inputs: got an integer; give a string"),
        (b'{"inputs": {"a": NaN}}', InvalidInput, "inputs: got a number that is not finite"),
        (
            b'{"inputs": "x", "parameters": {"temperature": 1e999}}',
            InvalidInput,
            "parameters.temperature: got a number that is not f",
        ),
        (
            b'{"inputs": "x", "parameters": {"top_k": true}}',
            InvalidInput,
            "parameters.top_k: got a boolean; give a positive integer",
        ),
        (
            b'{"inputs": "x", "parameters": {"stop": ["a", 3]}}',
            InvalidInput,
            "parameters.stop: got an integer; give an array",
        ),
        (
            b'{"inputs": "x", "steering": {"layers": []}}',
            InvalidInput,
            "steering.layers: got an array that is not allowed",
        ),
        (
            b'{"inputs": "x", "steering": {"positions": []}}',
            InvalidInput,
            "steering.positions: got an array that is not allowed; give generation, all, last, or an array",
        ),
        (b'{"inputs": "x", "steering": {"positions": [true]}}', InvalidInput, "steering.positions: got "),
        (b'{"inputs": "x", "steering": {"positions": [1.0]}}', InvalidInput, "steering.positions: got "),
        (
            b'{"inputs": "x", "steering": {"alpha": 1}}',
            InvalidInput,
            "steering.alpha: got an integer that is out of range; give a number",
        ),
        (
            b'{"inputs": "x", "steering": {"method": "magic"}}',
            InvalidInput,
            "steering.method: got a string that is not allowed; give",
        ),
        (
            b'{"inputs": "x", "steering": {"tsk": 1}}',
            UnknownField,
            "steering.tsk: unknown field; known fields: alpha, layers, method",
        ),
        (b'{"inputs": "x", "a secret": 1}', UnknownField, r"\(a field\): unknown field; known fields: details, inputs"),
    ],
)
def test_messages_name_field_kind_and_remedy(raw: bytes, error: type[MeraError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        parse(GenerateBody, raw)
    assert type(caught.value) is error
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ({}, InvalidInput, "task: missing; give the name of a task"),
        ({"task": "", "inputs": ["x"]}, InvalidInput, "task: got a string that is not allowed"),
        ({"task": "t", "inputs": []}, InvalidInput, "inputs: got an array that is not allowed; give 1 to 256 items"),
        ({"task": "t", "inputs": ["x"] * 257}, InvalidInput, "inputs: got an array that is not allowed"),
        (
            {"task": "t", "inputs": ["x"], "steering": {"task": "t"}},
            UnknownField,
            "steering.task: unknown field; known",
        ),
        (
            {"task": "t", "inputs": ["x"], "details": "none"},
            UnknownField,
            "details: unknown field; known fields: inputs",
        ),
    ],
)
def test_classify_takes_a_task_and_inputs(body: dict[str, object], error: type[MeraError], message: str) -> None:
    with pytest.raises(error, match=message):
        parse(ClassifyBody, json.dumps(body).encode())


class Item(Strict):
    name: Annotated[str, Field(description="a string")]


class Items(Strict):
    items: Annotated[list[Item], Field(description="an array")]


def test_a_list_of_objects_names_the_one_that_is_wrong() -> None:
    with pytest.raises(InvalidInput, match=r"^items\[1\].name: got an integer; give a string"):
        parse(Items, b'{"items": [{"name": "x"}, {"name": 3}]}')
    with pytest.raises(UnknownField, match=r"^items\[0\].nam: unknown field; known fields: name"):
        parse(Items, b'{"items": [{"name": "x", "nam": 3}]}')
    with pytest.raises(InvalidInput, match=r"^items\[0\]: got a string; give an array"):
        parse(Items, b'{"items": ["x"]}')
