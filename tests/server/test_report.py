"""The answer's body, field for field, from a plan and a generation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from mera_server.catalog import Catalog, Probe
from mera_server.replies import GenerateReply, MeraReply
from mera_server.report import brief, generate_reply, mera_object
from mera_server.resolve import Plan

from merasteer.types import Answer, Generation, PredictedError, SteeringCounts, TokenTrace

from .conftest import holding

MakePlan = Callable[..., Plan]

MOVED = SteeringCounts(2, 1, 6, 4, 0.04, 0.2)
GENERATION = Generation(
    tokens=(2, 9),
    text=" spam.",
    finish_reason="length",
    prompt_tokens=5,
    predicted_error=PredictedError(0.71, 0.3, 2, "answer"),
    steering=MOVED,
    answer=Answer(1, (0.08, 0.92)),
    logprobs=(-0.1, -0.5),
    trace=(TokenTrace((0.5, 0.7), (0.5, 0.3), (0.0, 0.2)), TokenTrace((0.5, 0.2), (0.5, 0.2), (0.0, 0.0))),
)


def decode(tokens: tuple[int, ...]) -> str:
    return f"<{tokens[0]}>"


def body(plan: Plan, generation: Generation = GENERATION) -> dict[str, object]:
    mera = mera_object(plan, generation, decode)
    found: dict[str, object] = json.loads(generate_reply(plan, generation, mera, decode, {9}).json_bytes())
    return found


def test_every_field_of_a_steered_answer(make_plan: MakePlan) -> None:
    assert body(make_plan({"steering": {"task": "good"}})) == {
        "generated_text": " spam.",
        "details": {"finish_reason": "length", "prompt_tokens": 5, "generated_tokens": 2, "seed": None},
        "mera": {
            "task": "good",
            "probe": "aa" * 32,
            "method": "mera",
            "decision": "steered",
            "reason": None,
            "alpha": 0.3,
            "predicted_error": {"before": 0.71, "after": 0.3, "layer": 2, "position": "answer"},
            "steering": {"tokens": 2, "steered_tokens": 1, "cells": 6, "steered_cells": 4, "mean_shift": 0.04, "max_shift": 0.2},
            "guarantee": {
                "certified": True, "why": None, "test": "mcnemar", "gain": 0.12, "lower_bound": 0.05, "epsilon": 0.0,
                "delta": 0.05, "level": 0.025, "attempt": 1, "n": 250,
            },
            "answer": {"label": "spam", "probabilities": {"ham": 0.08, "spam": 0.92}, "by": "model"},
            "trace": None,
        },
    }  # fmt: skip


def test_nothing_moved_is_not_needed(make_plan: MakePlan) -> None:
    still = replace(GENERATION, steering=SteeringCounts(2, 0, 6, 0))
    assert mera_object(make_plan({"steering": {"task": "good"}}), still, decode).decision == "not_needed"


@pytest.mark.parametrize(
    ("method", "cells", "changed", "decision"),
    [
        ("logit_bias", 0, True, "steered"),
        ("logit_bias", 0, False, "not_needed"),
        ("mera+bias", 3, False, "steered"),
        ("mera+bias", 0, True, "steered"),
        ("mera+bias", 0, False, "not_needed"),
    ],
)
def test_a_bias_steers_where_it_changed_the_answer(
    make_plan: MakePlan, catalog: Catalog, good: Probe, method: str, cells: int, changed: bool, decision: str
) -> None:
    own = holding(good, method=method, label_bias=(0.0, 1.0), alpha=None if method == "logit_bias" else 0.3)  # type: ignore[arg-type]
    found = make_plan({"steering": {"task": "good"}}, catalog=replace(catalog, latest={"good": own}))
    generation = replace(
        GENERATION, steering=SteeringCounts(2, cells, 6, cells), answer=Answer(1, (0.1, 0.9), changed=changed)
    )
    mera = mera_object(found, generation, decode)
    assert (mera.method, mera.decision, mera.alpha) == (method, decision, own.alpha)
    assert mera.guarantee is not None
    assert (mera.guarantee.certified, mera.guarantee.why) == (True, None)
    assert set(mera.model_dump()["answer"]) == {"label", "probabilities", "by"}


def test_no_task_is_nulls_and_zeros(make_plan: MakePlan) -> None:
    plain = replace(GENERATION, predicted_error=None, answer=None, steering=SteeringCounts())
    mera = mera_object(make_plan({}), plain, decode)
    zeros = {"tokens": 0, "steered_tokens": 0, "cells": 0, "steered_cells": 0, "mean_shift": 0.0, "max_shift": 0.0}
    nulls = dict.fromkeys(("task", "probe", "reason", "alpha", "predicted_error", "guarantee", "answer", "trace"))
    assert mera.model_dump() == {**nulls, "method": "none", "decision": "off", "steering": zeros}


@pytest.mark.parametrize(
    ("steering", "decision", "reason", "certified", "why"),
    [
        ({"task": "good", "method": "none"}, "off", None, False, "method none is not what was certified"),
        ({"task": "weak"}, "abstained", "uncertified", False, "the artifact is not certified"),
    ],
)
def test_untouched_requests_read_and_count_nothing(
    make_plan: MakePlan, steering: dict[str, object], decision: str, reason: str | None, certified: bool, why: str
) -> None:
    mera = mera_object(make_plan({"steering": steering}), GENERATION, decode)
    assert (mera.decision, mera.reason, mera.alpha, mera.steering.cells) == (decision, reason, None, 0)
    assert mera.predicted_error is not None
    assert mera.predicted_error.before == mera.predicted_error.after == 0.71
    assert mera.guarantee is not None
    assert (mera.guarantee.certified, mera.guarantee.why) == (certified, why)
    assert mera.answer is not None


def test_no_probe_has_an_answer_and_no_guarantee(make_plan: MakePlan) -> None:
    mera = mera_object(make_plan({"steering": {"task": "bare"}}), replace(GENERATION, predicted_error=None), decode)
    assert (mera.decision, mera.reason, mera.predicted_error, mera.guarantee) == ("abstained", "no_probe", None, None)
    assert mera.answer is not None


def test_a_missing_answer_is_a_null_label(make_plan: MakePlan) -> None:
    missing = replace(GENERATION, answer=Answer(None, (0.4, 0.6)))
    answer = mera_object(make_plan({"steering": {"task": "good"}}), missing, decode).answer
    assert answer is not None
    assert (answer.label, answer.probabilities) == (None, {"ham": 0.4, "spam": 0.6})


def test_details_none_is_three_fields(make_plan: MakePlan) -> None:
    mera = mera_object(make_plan({"steering": {"task": "good"}}), GENERATION, decode)
    assert brief(mera).model_dump() == {"decision": "steered", "reason": None, "alpha": 0.3}


def test_trace_holds_every_layer_of_every_token(make_plan: MakePlan) -> None:
    mera = mera_object(make_plan({"steering": {"task": "good"}, "details": "trace"}), GENERATION, decode)
    assert mera.trace is not None
    assert [entry.model_dump() for entry in mera.trace] == [
        {"id": 2, "text": "<2>", "before": [0.5, 0.7], "after": [0.5, 0.3], "shift": [0.0, 0.2]},
        {"id": 9, "text": "<9>", "before": [0.5, 0.2], "after": [0.5, 0.2], "shift": [0.0, 0.0]},
    ]


def test_tokens_full_text_and_seed(make_plan: MakePlan) -> None:
    found = body(make_plan({"parameters": {"details": True, "return_full_text": True, "temperature": 0.5, "seed": 4}}))
    assert found["generated_text"] == "Say: hello Label: spam."
    assert found["details"] == {
        "finish_reason": "length",
        "prompt_tokens": 5,
        "generated_tokens": 2,
        "seed": 4,
        "prefill": [],
        "tokens": [
            {"id": 2, "text": "<2>", "logprob": -0.1, "special": False},
            {"id": 9, "text": "<9>", "logprob": -0.5, "special": True},
        ],
    }


def test_the_two_shapes_of_mera_are_told_apart() -> None:
    schema = GenerateReply.model_json_schema()
    assert set(MeraReply.model_fields) == set(schema["$defs"]["MeraReply"]["required"])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(None, (0.4, 0.6)), "the answer is none of the labels"),
        (None, "the answer is none of the labels"),
        (Answer(0, (0.9, 0.1)), None),
    ],
)
def test_an_answer_without_a_label_is_not_covered(make_plan: MakePlan, answer: Answer | None, why: str | None) -> None:
    """What was certified is how often the label is right."""
    guarantee = mera_object(
        make_plan({"steering": {"task": "good"}}), replace(GENERATION, answer=answer), decode
    ).guarantee
    assert guarantee is not None
    assert (guarantee.certified, guarantee.why) == (why is None, why)
    asked = make_plan({"steering": {"task": "good", "alpha": 0.1}})
    told = mera_object(asked, replace(GENERATION, answer=answer), decode).guarantee
    assert told is not None
    assert told.why == "; ".join(filter(None, ("alpha overridden", why)))
