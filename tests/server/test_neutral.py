"""The table of parameters that are known and not implemented: what it takes reaches every body, all else is refused with its reason."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from mera_server import neutral
from mera_server.errors import parse
from mera_server.neutral import TABLE, Neutral
from mera_server.openai.schemas import ChatBody, CompletionBody, Message, StreamOptions, TextPart
from mera_server.schemas import GenerateBody, LabelParameters, LabelsBody, Parameters, Strict
from pydantic import JsonValue

from merasteer.errors import Unsupported

BODIES: dict[str, tuple[type[Strict], dict[str, Any]]] = {  # name -> the body, what it needs
    "Parameters": (Parameters, {}),
    "GenerateBody": (GenerateBody, {"inputs": "x"}),
    "LabelParameters": (LabelParameters, {}),
    "LabelsBody": (LabelsBody, {"inputs": "x"}),
    "CompletionBody": (CompletionBody, {"prompt": "x"}),
    "ChatBody": (ChatBody, {"messages": [{"role": "user", "content": "x"}]}),
    "Message": (Message, {"role": "user", "content": "x"}),
    "StreamOptions": (StreamOptions, {}),
    "TextPart": (TextPart, {"type": "text", "text": "x"}),
}
OTHERS: tuple[JsonValue, ...] = (7.25, True, "of tomorrow", {"of": "tomorrow"}, [{"of": "tomorrow"}])
CASES = [(body, name, row) for row in TABLE for body in row.bodies for name in row.fields]


def read(body: str, field: str, value: JsonValue) -> Strict:
    model, needed = BODIES[body]
    return parse(model, json.dumps({**needed, field: value}).encode())


@pytest.mark.parametrize(("body", "name", "row"), CASES, ids=[f"{body}-{name}" for body, name, _ in CASES])
def test_neutral_values_and_null_are_taken_and_all_else_is_refused_by_name(body: str, name: str, row: Neutral) -> None:
    for value in (None, *(OTHERS if row.takes is None else row.takes)):
        assert getattr(read(body, name, value), name) == value
    for value in () if row.takes is None else OTHERS:
        if value in row.takes:
            continue
        with pytest.raises(Unsupported) as caught:
            read(body, name, value)
        said = str(caught.value)
        assert said.startswith(f"{name}: got ")
        assert row.why.replace("`", "") in said
        assert "tomorrow" not in said


def test_each_field_of_a_body_has_one_row() -> None:
    assert set(Counter((body, name) for body, name, _ in CASES).values()) == {1}
    assert {body for body, _, _ in CASES} == set(BODIES)
    for body, (model, _) in BODIES.items():
        own = set(model.__mro__[1].model_fields)  # type: ignore[attr-defined]
        assert not own & {name for row in neutral.of_body(body) for name in row.fields}


def test_one_is_a_number_and_no_boolean() -> None:
    read("Parameters", "best_of", 1.0)
    for name, value in (("best_of", True), ("watermark", 0), ("top_n_tokens", False), ("no_stop_trim", 0.0)):
        with pytest.raises(Unsupported):
            read("Parameters", name, value)


def test_the_schema_says_what_is_taken() -> None:
    described = Parameters.model_json_schema()["properties"]
    assert described["repetition_penalty"]["enum"] == [1, None]
    assert "enum" not in described["length_penalty"]
    assert described["repetition_penalty"]["description"] == "1 or null"
