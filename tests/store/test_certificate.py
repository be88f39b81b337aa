from typing import Any

import pytest

from merasteer.errors import BadArtifact
from merasteer.store.certificate import agree, certificate_of, validate


def _abstain(calibration: dict[str, Any]) -> None:
    calibration.update(decision="abstained", reason="uncertified", chosen=None)


def test_extra_keys_may_stand_and_an_abstention_is_valid(parts: Any) -> None:
    assert validate(parts.calibration)["alpha_grid"]
    _abstain(parts.calibration)
    validate(parts.calibration)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": "logit_bias"}, "certified without being among the tested"),
        ({"chosen": "nobody"}, "not among the candidates"),
        ({"chosen": None}, "certified without"),
        ({"tested": []}, "certified without"),
        ({"reason": "uncertified"}, "reason"),
        ({"decision": "abstained"}, "reason"),
        ({"decision": "abstained", "reason": "bored"}, "reason"),
        ({"decision": "perhaps"}, "decision"),
        ({"delta": 0}, "delta"),
        ({"chances": 0}, "chances"),
        ({"epsilon": "0"}, "epsilon"),
        ({"test": None}, "test"),
        ({"candidates": {}}, "candidates"),
        ({"candidates": []}, "not among the candidates"),
    ],
)
def test_a_wrong_key_is_refused_by_name(parts: Any, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadArtifact, match=reason):
        validate({**parts.calibration, **change})


@pytest.mark.parametrize(
    ("name", "value"),
    [("gained", 245), ("lost", -1), ("p_value", 1.5), ("gain", 2), ("lower_bound", None), ("n", "250")],
)
def test_a_wrong_count_is_refused_by_name(parts: Any, name: str, value: object) -> None:
    parts.calibration["tested"][0][name] = value
    with pytest.raises(BadArtifact, match=r"tested\[0\]\." + ("gained" if name == "n" else name) + "|n:"):
        validate(parts.calibration)


def test_a_certified_manifest_serves_exactly_what_was_certified(parts: Any) -> None:
    agree(parts.manifest, parts.calibration)
    for name, value in (("alpha", 0.31), ("direction", "euclidean"), ("hook_point", "mlp_input")):
        changed = {**parts.manifest, "steering": {**parts.manifest["steering"], name: value}}
        with pytest.raises(BadArtifact, match=rf"steering\.{name}"):
            agree(changed, parts.calibration)  # type: ignore[arg-type]


def test_a_certificate_needs_a_p_value_at_its_level(parts: Any) -> None:
    parts.calibration["tested"][0]["p_value"] = 0.03
    agree(parts.manifest, parts.calibration)
    parts.calibration["chances"] = 2
    with pytest.raises(BadArtifact, match=r"p_value: 0\.03 is above the level 0\.025"):
        agree(parts.manifest, parts.calibration)


def test_certified_without_a_certificate_is_refused(parts: Any) -> None:
    _abstain(parts.calibration)
    with pytest.raises(BadArtifact, match="certified: true, yet"):
        agree(parts.manifest, parts.calibration)
    agree({**parts.manifest, "certified": False}, parts.calibration)  # type: ignore[arg-type]


def test_the_certificate_is_that_of_the_candidate_tested(parts: Any) -> None:
    found = certificate_of(parts.calibration)
    assert found is not None
    assert found["gain"] == 0.12
    assert (found["test"], found["n"], found["candidates"], found["chances"]) == ("mcnemar", 250, 2, 1)
    _abstain(parts.calibration)
    assert certificate_of(parts.calibration) == found
    assert certificate_of({**parts.calibration, "tested": []}) is None


def test_level_and_attempt_are_told_and_of_before_the_level_is_delta(parts: Any) -> None:
    found = certificate_of({**parts.calibration, "level": 0.025, "attempt": 1, "entry": "ab" * 6})
    assert found is not None
    assert (found["level"], found["attempt"], found["delta"]) == (0.025, 1, 0.05)
    before = certificate_of(parts.calibration)
    assert before is not None
    assert (before["level"], before["attempt"], before["broken"]) == (0.05, None, None)


def test_a_p_value_above_the_level_of_its_attempt_does_not_certify(parts: Any) -> None:
    parts.calibration["tested"][0]["p_value"] = 0.03  # at δ = .05 it would
    parts.calibration |= {"level": 0.025, "attempt": 1, "entry": "ab" * 6}
    with pytest.raises(BadArtifact, match=r"p_value: 0\.03 is above the level 0\.025"):
        agree(parts.manifest, parts.calibration)


def test_of_several_tested_the_one_that_was_refused_for_its_collapse_is_told(parts: Any) -> None:
    first = parts.calibration["tested"][0]
    _abstain(parts.calibration)
    other = next(row["key"] for row in parts.calibration["candidates"] if row["key"] != first["key"])
    failing = first | {"key": other, "p_value": 0.6, "collapse": None}
    tested = [failing, first | {"p_value": 0.001, "collapse": "ham gets 100% of the answers"}]
    found = certificate_of({**parts.calibration, "reason": "collapse", "chances": 2, "tested": tested})
    assert found is not None
    assert (found["key"], found["collapse"]) == (first["key"], "ham gets 100% of the answers")
    failed = certificate_of({**parts.calibration, "chances": 2, "tested": tested})
    assert failed is not None
    assert failed["key"] == other


def test_a_method_may_stand_beside_a_candidate(parts: Any) -> None:
    parts.calibration["candidates"][1]["method"] = "logit_bias"
    validate(parts.calibration)
    parts.calibration["candidates"][1]["method"] = "prayer"
    with pytest.raises(BadArtifact, match=r"candidates\[1\]\.method: 'prayer'"):
        validate(parts.calibration)


def test_the_method_that_is_served_is_the_one_that_was_certified(parts: Any) -> None:
    steering = parts.manifest["steering"]
    steering["method"] = "mera+bias"
    with pytest.raises(BadArtifact, match=r"steering\.method: 'mera\+bias' is not the certified 'mera'"):
        agree(parts.manifest, parts.calibration)
    parts.calibration["candidates"][0]["method"] = "mera+bias"
    agree(parts.manifest, parts.calibration)
    del steering["method"]
    with pytest.raises(BadArtifact, match=r"steering\.method: 'mera' is not the certified"):
        agree(parts.manifest, parts.calibration)


def test_a_certified_bias_stands_beside_readouts_that_only_watch(parts: Any) -> None:
    parts.calibration["candidates"][1]["method"] = parts.calibration["chosen"] = "logit_bias"
    parts.calibration["tested"][0]["key"] = "logit_bias"
    parts.manifest["steering"].update(method="logit_bias", alpha=None)
    validate(parts.calibration)
    agree(parts.manifest, parts.calibration)
    parts.manifest["steering"]["alpha"] = 0.3
    with pytest.raises(BadArtifact, match=r"steering\.alpha: 0\.3 is not the certified None"):
        agree(parts.manifest, parts.calibration)
