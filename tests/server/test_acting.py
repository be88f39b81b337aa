"""Who acts: one test per line of the decision table of `acting`, and every combination of them against its order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from mera_server.acting import withdrawn
from mera_server.canaries import relies, without
from mera_server.catalog import Catalog, Probe
from mera_server.resolve import Plan

from merasteer.errors import AlphaRequired, InvalidInput, Unsupported
from merasteer.types import UNCORRECTED, Correction

from .conftest import holding

MakePlan = Callable[..., Plan]
OFF = "the model does not behave as tested: canary 3 is off by 0.2 (tolerance 0.001)"
BIAS = (0.5, -0.5)

# The lines of the table in their order; each is a situation that may hold together with every other.
LINES = (
    "bias moves",
    "none",
    "disabled",
    "no_probe",
    "overridden",
    "conditions",
    "collapse",
    "uncertified",
    "other_prompt",
)


@pytest.fixture
def situation(make_plan: MakePlan, catalog: Catalog, good: Probe) -> Callable[..., Plan]:
    """The plan of a request for the task `good` in which all that is named holds, and nothing else."""

    def planned(*holds: str, **steering: Any) -> Plan:
        probe = holding(good, label_bias=BIAS)
        if "conditions" in holds:
            probe = replace(probe, mismatch="made elsewhere")
        if {"uncertified", "collapse"} & set(holds):
            probe = holding(probe, certified=False, alpha=None)
        if "collapse" in holds:
            probe = replace(probe, caution="collapse")
        method = "logit_bias" if "bias moves" in holds else "none" if "none" in holds else None
        alpha = 0.1 if {"bias moves", "overridden"} & set(holds) else None
        asked = {"task": None if "other_prompt" in holds else "good", "method": method, "alpha": alpha, **steering}
        return make_plan(
            {"steering": asked, "inputs": "Write a poem." if "other_prompt" in holds else "Say: hello Label:"},
            catalog=replace(catalog, latest={} if "no_probe" in holds else {"good": probe}),
            steering="disabled" not in holds,
            default_task="good",
        )

    return planned


def outcome(found: Plan) -> str:
    """Which line of the table a plan comes from."""
    if found.decision == "off":
        return "none"
    if found.decision == "abstained":
        assert not found.correction.moves
        assert found.correction.bias is None
        return str(found.reason)
    return "overridden" if found.overridden else "own"


COMBINATIONS = [
    tuple(line for line, holds in zip(LINES, flags, strict=True) if holds)
    for flags in product((False, True), repeat=len(LINES))
    if not (flags[0] and flags[1])  # one request has one method
]


@pytest.mark.parametrize("holds", COMBINATIONS, ids="+".join)
def test_the_first_line_that_applies_decides(situation: Callable[..., Plan], holds: tuple[str, ...]) -> None:
    # What is not certified has no conditions that it was certified under.
    certified = not {"uncertified", "collapse"} & set(holds)
    lines = [line for line in LINES if line in holds and (certified or line != "conditions")]
    if lines[:1] == ["bias moves"]:
        with pytest.raises(InvalidInput, match=r"^steering\.alpha: logit_bias moves nothing") as caught:
            situation(*holds)
        assert type(caught.value) is InvalidInput
        return
    found = situation(*holds)
    assert outcome(found) == (lines[0] if lines else "own")
    assert (found.why == ()) is (not lines or "no_probe" in lines)


@pytest.mark.parametrize("field", ["alpha", "positions", "layers"])
def test_a_bias_moves_nothing(situation: Callable[..., Plan], field: str) -> None:
    value = {"alpha": 0.1, "positions": "all", "layers": [0]}[field]
    with pytest.raises(InvalidInput, match=rf"^steering\.{field}: logit_bias moves nothing"):
        situation(method="logit_bias", **{field: value})


def test_none_reads_and_corrects_nothing(situation: Callable[..., Plan], good: Probe) -> None:
    assert situation("none").correction == Correction(readout=good.digest)
    assert situation("none", "no_probe").correction == UNCORRECTED


def test_a_server_with_steering_off_reads_at_most(situation: Callable[..., Plan], good: Probe) -> None:
    assert situation("disabled").correction == Correction(readout=good.digest)
    assert situation("disabled", "overridden").why == ("steering is off on this server",)


def test_without_an_artifact_there_is_no_probe(situation: Callable[..., Plan]) -> None:
    found = situation("no_probe")
    assert (found.reason, found.probe, found.why) == ("no_probe", None, ())


def test_every_layer_idle_is_no_probe_but_for_a_bias(make_plan: MakePlan, catalog: Catalog, good: Probe) -> None:
    idle = holding(good, active=(), method="logit_bias", alpha=None, label_bias=BIAS)
    served = replace(catalog, latest={"good": idle})
    assert make_plan({"steering": {"task": "good"}}, catalog=served).correction == idle.correction
    assert make_plan({"steering": {"task": "good", "method": "mera+bias"}}, catalog=served).reason == "no_probe"


@pytest.mark.parametrize(
    ("steering", "overridden", "correction"),
    [
        ({"alpha": 0.1}, ("alpha",), {"alpha": 0.1}),
        ({"positions": "all"}, ("positions",), {"positions": "all"}),
        ({"positions": [0, 2]}, ("positions",), {"positions": (0, 2)}),
        ({"layers": [2]}, ("layers",), {"layers": (2,)}),
        ({"method": "mera+bias"}, (), {"method": "mera+bias", "bias": BIAS}),
        ({"method": "logit_bias"}, (), {"method": "logit_bias", "bias": BIAS, "alpha": None}),
        ({"method": "additive", "strength": 2.0}, ("strength",), None),
    ],
)
@pytest.mark.parametrize("holds", [(), ("conditions",), ("other_prompt",)], ids="+".join)
def test_what_is_overridden_is_done_and_never_covered(
    situation: Callable[..., Plan], good: Probe, holds: tuple[str, ...], steering: Any, overridden: Any, correction: Any
) -> None:
    """`mera run` certified nothing of the sort: also where the artifact's own correction would abstain."""
    found = situation(*holds, **steering)
    assert (found.decision, found.reason, found.overridden) == (None, None, overridden)
    assert found.why
    if correction is None:
        assert found.correction == Correction("additive", f"{good.digest}/additive", None, 2.0)
    else:
        assert found.correction == replace(good.correction, **correction)


@pytest.mark.parametrize(
    "steering",
    [
        {"method": "mera"},
        {"alpha": 0.3},
        {"positions": "generation"},
        {"positions": "last"},  # the answer has one token: it is the same position
        {"layers": [0, 2, 3]},
        {"layers": [1, 3, 0, 2]},  # those that have a readout
        {"alpha": 0.3, "positions": "last", "layers": [0, 2, 3], "method": "mera"},
    ],
)
def test_what_is_asked_for_as_it_was_tested_stays_covered(situation: Callable[..., Plan], steering: Any) -> None:
    found, plain = situation(**steering), situation()
    assert (found.correction, found.why, found.overridden) == (plain.correction, (), ())
    assert situation("conditions", **steering).reason == "conditions"


@pytest.mark.parametrize(("tokens", "covered"), [(1, True), (2, False)])
def test_last_is_the_tested_position_where_an_answer_has_one_token(
    make_plan: MakePlan, catalog: Catalog, good: Probe, tokens: int, covered: bool
) -> None:
    longer = replace(good, task=replace(good.task, max_new_tokens=tokens))
    served = replace(catalog, latest={"good": longer})
    found = make_plan({"steering": {"task": "good", "positions": "last"}}, catalog=served)
    assert (found.why == ()) is covered


def test_what_an_override_needs(make_plan: MakePlan, catalog: Catalog, good: Probe) -> None:
    """Also under other conditions: what cannot be done is refused, not abstained from."""
    for probe in (good, replace(good, mismatch="made elsewhere")):
        served = replace(catalog, latest={"good": probe})
        with pytest.raises(Unsupported, match=r"^steering\.method: .* no label bias"):
            make_plan({"steering": {"task": "good", "method": "mera+bias"}}, catalog=served)
    weak = holding(good, certified=False, alpha=None)
    with pytest.raises(AlphaRequired, match=r"^steering\.alpha: missing, and the artifact has none"):
        make_plan({"steering": {"task": "good", "layers": [0]}}, catalog=replace(catalog, latest={"good": weak}))


def test_other_conditions_are_told_in_words(situation: Callable[..., Plan]) -> None:
    found = situation("conditions")
    assert (found.reason, found.why) == ("conditions", ("made elsewhere",))


@pytest.mark.parametrize(("named", "reason"), [(True, None), (False, "other_prompt")])
def test_a_default_task_corrects_its_own_prompts_alone(
    make_plan: MakePlan, good: Probe, named: bool, reason: str | None
) -> None:
    """A task that is named acts on any prompt; what it was not tested on is not covered."""
    steering = {"task": "good"} if named else {}
    found = make_plan({"inputs": "Write a poem.", "steering": steering}, default_task="good")
    assert found.reason == reason
    assert found.correction == (good.correction if named else good.correction.watching())
    assert found.why == ("the prompt does not match the task's template",)
    by_digest = make_plan({"inputs": "Write a poem.", "steering": {"probe": "aa"}}, default_task="good")
    assert by_digest.reason is None
    own = make_plan({"inputs": "Say: a poem Label:", "steering": {}}, default_task="good")
    assert (own.reason, own.correction, own.why) == (None, good.correction, ())


def test_otherwise_the_artifact_acts_as_it_was_tested(situation: Callable[..., Plan], good: Probe) -> None:
    found = situation()
    assert (found.correction, found.decision, found.why) == (good.correction, None, ())


# ------------------------------------------------------------------------------------------------ canaries that are off


def test_who_relied_on_what_is_withdrawn_abstains(situation: Callable[..., Plan], good: Probe) -> None:
    found = situation()
    assert relies(found)
    off = withdrawn(found, OFF)
    assert (off.decision, off.reason, off.correction) == ("abstained", "conditions", good.correction.watching())
    assert off.why == (OFF,)


@pytest.mark.parametrize("holds", [("overridden",), ("none",), ("disabled",), ("uncertified",), ("conditions",)])
def test_who_did_not_rely_on_it_goes_on(situation: Callable[..., Plan], holds: tuple[str, ...]) -> None:
    found = situation(*holds)
    assert not relies(found)
    off = withdrawn(found, OFF)
    assert (off.decision, off.reason, off.correction) == (found.decision, found.reason, found.correction)
    assert off.why == (*found.why, OFF)


def test_what_is_withdrawn_stays_so(make_plan: MakePlan, catalog: Catalog, good: Probe) -> None:
    """The catalog says it from then on, also where the artifact is asked for by its digest."""
    after = without(catalog, good.digest, OFF)
    for steering in ({"task": "good"}, {"probe": "aa"}):
        found = make_plan({"steering": steering}, catalog=after)
        assert (found.reason, found.why) == ("conditions", (OFF,))
    assert not after.listing().tasks[0].certified
    assert catalog.listing().tasks[0].certified
    assert after.probes["bb" * 32] is catalog.probes["bb" * 32]
