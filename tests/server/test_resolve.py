"""The plan of a request: what is decided, why the certificate does or does not cover it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from mera_server.catalog import Catalog, Probe
from mera_server.resolve import Plan

from merasteer.errors import (
    AlphaRequired,
    BadTask,
    EmptyInputs,
    InvalidInput,
    UnknownField,
    UnknownProbe,
    UnknownTask,
    Unsupported,
)
from merasteer.types import Policy

from .conftest import holding

MakePlan = Callable[..., Plan]
GOOD, WEAK = "aa" * 32, "bb" * 32


def test_no_task_is_plain_generation(make_plan: MakePlan) -> None:
    found = make_plan({"inputs": "hello"})
    assert (found.method, found.task, found.probe, found.correction.policy, found.decision) == (
        "none",
        None,
        None,
        None,
        "off",
    )
    assert found.sampling.greedy
    assert found.max_new_tokens == 16


def test_null_steering_is_like_none(make_plan: MakePlan) -> None:
    for steering in (None, {}, {"task": None}, {"method": "none"}, {"method": None}):
        assert make_plan({"steering": steering}).decision == "off"


def test_the_default_task_is_steered(make_plan: MakePlan) -> None:
    found = make_plan({}, default_task="good")
    assert (found.method, found.alpha, found.decision, found.why) == ("mera", 0.3, None, ())
    assert found.correction.policy == Policy(GOOD, 0.3)
    assert make_plan({"steering": {"method": "none"}}, default_task="good").decision == "off"


@pytest.mark.parametrize(
    ("steering", "decision", "reason", "alpha", "policy"),
    [
        ({"task": "good"}, None, None, 0.3, Policy(GOOD, 0.3)),
        ({"probe": "aa"}, None, None, 0.3, Policy(GOOD, 0.3)),
        ({"task": "good", "alpha": 0.1}, None, None, 0.1, Policy(GOOD, 0.1)),
        ({"task": "good", "positions": "all"}, None, None, 0.3, Policy(GOOD, 0.3, positions="all")),
        ({"task": "good", "positions": "last"}, None, None, 0.3, Policy(GOOD, 0.3)),  # one token: the same position
        ({"task": "good", "positions": [4, 0]}, None, None, 0.3, Policy(GOOD, 0.3, positions=(4, 0))),
        (
            {"task": "good", "method": "additive", "positions": [2]},
            None,
            None,
            None,
            Policy(f"{GOOD}/additive", None, 1.0, (2,)),
        ),
        ({"task": "good", "layers": [3, 0, 1]}, None, None, 0.3, Policy(GOOD, 0.3, layers=(0, 3))),
        ({"task": "good", "method": "none"}, "off", None, None, Policy(GOOD)),
        ({"task": "good", "method": "additive"}, None, None, None, Policy(f"{GOOD}/additive", None, 1.0)),
        (
            {"task": "good", "method": "contrastive", "strength": 2.5},
            None,
            None,
            None,
            Policy(f"{GOOD}/contrastive", None, 2.5),
        ),
        ({"task": "weak"}, "abstained", "uncertified", None, Policy(WEAK)),
        ({"task": "weak", "method": "none"}, "off", None, None, Policy(WEAK)),
        ({"task": "weak", "alpha": 0.4}, None, None, 0.4, Policy(WEAK, 0.4)),
        ({"task": "bare"}, "abstained", "no_probe", None, None),
        ({"task": "bare", "alpha": 0.4}, "abstained", "no_probe", None, None),
        ({"task": "bare", "method": "none"}, "off", None, None, None),
    ],
)
def test_decisions(
    make_plan: MakePlan,
    steering: dict[str, object],
    decision: str | None,
    reason: str | None,
    alpha: float | None,
    policy: Policy,
) -> None:
    found = make_plan({"steering": steering})
    assert (found.decision, found.reason, found.alpha, found.correction.policy) == (decision, reason, alpha, policy)


@pytest.mark.parametrize("task", ["good", "weak", "bare"])
@pytest.mark.parametrize("method", ["mera", "additive"])
def test_a_server_with_steering_off_never_moves(make_plan: MakePlan, task: str, method: str) -> None:
    found = make_plan({"steering": {"task": task, "method": method}}, steering=False)
    assert (found.decision, found.reason, found.alpha) == ("abstained", "disabled", None)
    assert found.correction.policy is None or (found.correction.policy.alpha, found.correction.policy.strength) == (
        None,
        0.0,
    )


def test_an_artifact_with_every_layer_idle_is_no_probe(make_plan: MakePlan, catalog: Catalog, good: Probe) -> None:
    idle = holding(good, active=(), certified=False, alpha=None)
    found = make_plan({"steering": {"task": "good"}}, catalog=replace(catalog, latest={"good": idle}))
    assert (found.decision, found.reason, found.correction.policy) == ("abstained", "no_probe", None)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"steering": {"task": "good"}}, ()),
        ({"steering": {"task": "good"}, "inputs": {"text": "hello"}}, ()),
        ({"steering": {"task": "good"}, "parameters": {"temperature": 0.0, "seed": 3}}, ()),
        ({"steering": {"task": "good"}, "inputs": "hello"}, ("the prompt does not match the task's template",)),
        ({"steering": {"task": "good"}, "parameters": {"temperature": 0.7}}, ("decoding is sampled, not greedy",)),
        ({"steering": {"task": "good", "alpha": 0.3, "positions": "last", "layers": [3, 2, 0]}}, ()),  # what was tested
        ({"steering": {"task": "good", "alpha": 0.2}}, ("alpha overridden",)),
        ({"steering": {"task": "good", "layers": [0], "positions": "generation"}}, ("layers overridden",)),
        ({"steering": {"task": "good", "layers": [0], "positions": "all"}}, ("positions, layers overridden",)),
        ({"steering": {"task": "good", "method": "none"}}, ("method none is not what was certified",)),
        ({"steering": {"task": "good", "method": "additive"}}, ("method additive is not what was certified",)),
        ({"steering": {"task": "weak"}}, ("the artifact is not certified",)),
        ({"steering": {"task": "bare"}}, ()),
    ],
)
def test_why_the_certificate_does_not_cover(make_plan: MakePlan, body: dict[str, object], why: tuple[str, ...]) -> None:
    assert make_plan(body).why == why


def test_why_names_another_runtime_and_everything_else_that_applies(
    make_plan: MakePlan, catalog: Catalog, good: Probe
) -> None:
    other = replace(catalog, latest={"good": replace(good, mismatch="made before it was kept")})
    found = make_plan({"steering": {"task": "good"}, "inputs": "x", "parameters": {"temperature": 1}}, catalog=other)
    assert found.why == (
        "made before it was kept",
        "decoding is sampled, not greedy",
        "the prompt does not match the task's template",
    )


@pytest.mark.parametrize(
    ("position", "budget", "covered"), [("exact", 7, False), ("exact", 8, True), ("last", 1, True)]
)
def test_an_answer_that_is_searched_for_needs_the_tasks_budget(
    make_plan: MakePlan, catalog: Catalog, good: Probe, position: str, budget: int, covered: bool
) -> None:
    task = replace(good.task, position=position, max_new_tokens=8)
    other = replace(catalog, latest={"good": replace(good, task=task)})
    found = make_plan({"steering": {"task": "good"}, "parameters": {"max_new_tokens": budget}}, catalog=other)
    assert (found.why == ()) is covered


def test_the_artifacts_own_positions(make_plan: MakePlan, catalog: Catalog, good: Probe) -> None:
    for own in ("last", "all", (0, 2)):
        other = replace(catalog, latest={"good": holding(good, positions=own)})  # type: ignore[arg-type]
        assert make_plan({"steering": {"task": "good"}}, catalog=other).correction.policy == Policy(
            GOOD, 0.3, positions=own
        )  # type: ignore[arg-type]
        asked = make_plan({"steering": {"task": "good", "positions": "generation"}}, catalog=other)
        assert asked.correction.policy == Policy(GOOD, 0.3, positions="last" if own == "last" else "generation")
        assert asked.overridden == (() if own == "last" else ("positions",))


def test_objects_are_rendered(make_plan: MakePlan) -> None:
    assert make_plan({"inputs": {"text": "{x}"}, "steering": {"task": "bare"}}).prompt == "Say: {x} Label:"


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ({"inputs": ""}, EmptyInputs, "inputs: empty"),
        ({"inputs": {}, "steering": {"task": "good"}}, EmptyInputs, "inputs: empty"),
        ({"inputs": {"text": "x"}}, InvalidInput, "inputs: an object is rendered by a task's template; name the task"),
        ({"inputs": {"txt": "x"}, "steering": {"task": "good"}}, UnknownField, "inputs: has a field that .* give text"),
        ({"inputs": {"text": 3}, "steering": {"task": "good"}}, InvalidInput, "inputs: field 'text': is of type int"),
        (
            {"steering": {"task": "nope"}},
            UnknownTask,
            "steering.task: no such task; known tasks: bare, good, weak",
        ),
        ({"steering": {"task": "broken"}}, BadTask, "no such token"),
        ({"steering": {"probe": "cc"}}, UnknownProbe, "probe: "),
        ({"steering": {"probe": "bb", "task": "good"}}, InvalidInput, "steering.probe: belongs to another task"),
        ({"steering": {"method": "mera"}}, InvalidInput, "steering.task: missing, and method needs one; known tasks"),
        (
            {"steering": {"alpha": 0.5, "layers": [0]}},
            InvalidInput,
            "steering.task: missing, and alpha, layers needs one",
        ),
        (
            {"steering": {"task": "good", "method": "logit_bias"}},
            Unsupported,
            "steering.method: .* no label bias for logit",
        ),
        ({"steering": {"task": "weak", "method": "contrastive"}}, Unsupported, "no vectors for contrastive"),
        (
            {"steering": {"task": "good", "positions": [3, 0, 3]}},
            InvalidInput,
            "steering.positions: holds a position twice",
        ),
        ({"steering": {"task": "good", "layers": [1, 1]}}, InvalidInput, "steering.layers: holds a layer twice"),
        ({"steering": {"task": "good", "layers": [4]}}, InvalidInput, "steering.layers: .* from 0 to 3"),
        ({"steering": {"task": "bare", "layers": [4]}}, InvalidInput, "steering.layers: .* from 0 to 3"),
        ({"steering": {"task": "good", "layers": [1]}}, InvalidInput, "active layers: 0, 2, 3"),
        (
            {"steering": {"task": "good", "strength": 1.0}},
            InvalidInput,
            "steering.strength: only additive and contrastive",
        ),
        (
            {"steering": {"task": "good", "method": "additive", "alpha": 0.5}},
            InvalidInput,
            "steering.alpha: .* give strength",
        ),
        (
            {"steering": {"task": "weak", "layers": [1]}},
            AlphaRequired,
            "steering.alpha: missing, and the artifact has none",
        ),
        (
            {"steering": {"task": "weak", "positions": "all"}},
            AlphaRequired,
            "steering.alpha: missing, and the artifact has none",
        ),
        ({"parameters": {"do_sample": True, "temperature": 0}}, InvalidInput, "parameters.temperature: 0 is greedy"),
    ],
)
def test_refusals(make_plan: MakePlan, body: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        make_plan(body)
    assert type(caught.value) is error


def test_seeds(make_plan: MakePlan) -> None:
    sampled = {"temperature": 1.0}
    assert make_plan({"parameters": sampled}).sampling.seed != make_plan({"parameters": sampled}).sampling.seed
    assert make_plan({"parameters": {**sampled, "seed": 5}}).sampling.seed == 5
