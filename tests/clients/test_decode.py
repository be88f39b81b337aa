"""Answers of other versions: more keys are ignored, missing or mistyped ones are named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from mera_client import BadResponse, Generation
from mera_client._decode import decode

from .conftest import GENERATION


def changed(path: str, value: Any) -> dict[str, Any]:
    answer = copy.deepcopy(GENERATION)
    *parents, last = path.split(".")
    here = answer
    for name in parents:
        here = here[name]
    here[last] = value
    return answer


@pytest.mark.parametrize("path", ["news", "details.news", "mera.news", "mera.guarantee.news", "mera.answer.news"])
def test_more_keys_are_ignored(path):
    assert decode(Generation, changed(path, {"a": 1})) == decode(Generation, GENERATION)


def test_more_decisions_are_let_through():
    assert decode(Generation, changed("mera.decision", "postponed")).mera.decision == "postponed"


def test_mera_details_none_fills_three_fields():
    answer = {**GENERATION, "mera": {"decision": "abstained", "reason": "uncertified", "alpha": None}}
    mera = decode(Generation, answer).mera
    assert (mera.decision, mera.reason, mera.alpha) == ("abstained", "uncertified", None)
    assert mera.predicted_error is mera.steering is mera.guarantee is mera.answer is mera.trace is None


def test_tokens_are_read():
    token = {"id": 7, "text": " spam", "logprob": -1, "special": False, "rank": 1}
    (read,) = decode(Generation, changed("details.tokens", [token])).details.tokens
    assert (read.id, read.text, read.logprob, read.special) == (7, " spam", -1.0, False)


def test_the_trace_is_read():
    row = {"id": 7, "text": " spam", "before": [0.7, 0.5], "after": [0.3, 0.5], "shift": [0.04, 0]}
    (read,) = decode(Generation, changed("mera.trace", [row])).mera.trace
    assert (read.text, read.before, read.after, read.shift) == (" spam", (0.7, 0.5), (0.3, 0.5), (0.04, 0.0))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("generated_text", None),
        ("generated_text", 3),
        ("details", []),
        ("details.prompt_tokens", "57"),
        ("details.prompt_tokens", True),
        ("details.tokens", {"id": 1}),
        ("mera.alpha", "0.3"),
        ("mera.alpha", False),
        ("mera.answer.probabilities", [0.1, 0.9]),
        ("mera.guarantee.certified", 1),
    ],
)
def test_a_mistyped_value_is_named_by_its_path(path, value):
    with pytest.raises(BadResponse, match=rf"^answer\.{path}: "):
        decode(Generation, changed(path, value))


def test_a_missing_key_is_named_by_its_path():
    with pytest.raises(BadResponse, match=r"^answer\.mera: decision is missing"):
        decode(Generation, {**GENERATION, "mera": {}})
