"""Which method a request gets, from which artifact, and whether the certificate covers it: the table of `resolve`, row by row."""

from __future__ import annotations

from typing import Any

import pytest
from mera_server.catalog import Catalog, Probe
from mera_server.resolve import Limits, plan
from mera_server.schemas import GenerateBody

from merasteer.errors import AlphaRequired, InvalidInput, MeraError, Unsupported
from merasteer.types import METHODS, Policy

from .conftest import holding

BIAS = (0.5, -0.5)
KEY = "aa" * 32
READ = Policy(KEY)
MERA, BOTH = Policy(KEY, 0.3), Policy(KEY, 0.2)

# What an artifact is: its own method, whether certified, its α, its label bias.
ARTIFACTS: dict[str, dict[str, Any]] = {
    "mera": {"method": "mera", "certified": True, "alpha": 0.3, "label_bias": BIAS},
    "bias": {"method": "logit_bias", "certified": True, "alpha": None, "label_bias": BIAS},
    "both": {"method": "mera+bias", "certified": True, "alpha": 0.2, "label_bias": BIAS},
    "weak": {"method": "mera", "certified": False, "alpha": None, "label_bias": BIAS},
    "weak bias": {"method": "logit_bias", "certified": False, "alpha": None, "label_bias": BIAS},
    "weak both": {"method": "mera+bias", "certified": False, "alpha": None, "label_bias": BIAS},
    "no bias": {"method": "mera", "certified": True, "alpha": 0.3, "label_bias": None},
    "idle bias": {"method": "logit_bias", "certified": True, "alpha": None, "label_bias": BIAS, "active": ()},
    "idle": {"method": "mera", "certified": False, "alpha": None, "label_bias": BIAS, "active": ()},
}

# artifact, method asked for -> (method, policy, label bias, covered by the certificate); or the reason of abstaining; or an error
APPLIED: dict[tuple[str, str | None], Any] = {
    ("mera", None): ("mera", MERA, None, True),
    ("mera", "mera"): ("mera", MERA, None, True),
    ("mera", "logit_bias"): ("logit_bias", READ, BIAS, False),
    ("mera", "mera+bias"): ("mera+bias", MERA, BIAS, False),
    ("mera", "additive"): ("additive", Policy(f"{KEY}/additive", None, 1.0), None, False),
    ("bias", None): ("logit_bias", READ, BIAS, True),
    ("bias", "logit_bias"): ("logit_bias", READ, BIAS, True),
    ("bias", "mera"): AlphaRequired,
    ("bias", "mera+bias"): AlphaRequired,
    ("bias", "contrastive"): ("contrastive", Policy(f"{KEY}/contrastive", None, 1.0), None, False),
    ("both", None): ("mera+bias", BOTH, BIAS, True),
    ("both", "mera+bias"): ("mera+bias", BOTH, BIAS, True),
    ("both", "mera"): ("mera", BOTH, None, False),
    ("both", "logit_bias"): ("logit_bias", READ, BIAS, False),
    ("weak", None): "uncertified",
    ("weak", "mera"): "uncertified",
    ("weak", "logit_bias"): ("logit_bias", READ, BIAS, False),
    ("weak", "mera+bias"): AlphaRequired,
    ("weak", "additive"): ("additive", Policy(f"{KEY}/additive", None, 1.0), None, False),
    ("weak bias", None): "uncertified",
    ("weak bias", "logit_bias"): "uncertified",
    ("weak bias", "mera"): AlphaRequired,
    ("weak both", None): "uncertified",
    ("weak both", "mera+bias"): "uncertified",
    ("no bias", None): ("mera", MERA, None, True),
    ("no bias", "logit_bias"): Unsupported,
    ("no bias", "mera+bias"): Unsupported,
    ("idle bias", None): ("logit_bias", None, BIAS, True),
    ("idle bias", "mera"): "no_probe",
    ("idle bias", "mera+bias"): "no_probe",
    ("idle", None): "no_probe",
    ("idle", "logit_bias"): ("logit_bias", None, BIAS, False),
}

# the same with `alpha: 0.1` and with `positions: "all"`
OVERRIDDEN: dict[tuple[str, str | None], tuple[Any, Any]] = {
    ("mera", None): (("mera", Policy(KEY, 0.1), None), ("mera", Policy(KEY, 0.3, positions="all"), None)),
    ("mera", "logit_bias"): (InvalidInput, InvalidInput),
    ("mera", "mera+bias"): (("mera+bias", Policy(KEY, 0.1), BIAS), ("mera+bias", Policy(KEY, 0.3, positions="all"), BIAS)),
    ("bias", None): (InvalidInput, InvalidInput),
    ("bias", "logit_bias"): (InvalidInput, InvalidInput),
    ("bias", "mera"): (("mera", Policy(KEY, 0.1), None), AlphaRequired),
    ("bias", "mera+bias"): (("mera+bias", Policy(KEY, 0.1), BIAS), AlphaRequired),
    ("both", None): (("mera+bias", Policy(KEY, 0.1), BIAS), ("mera+bias", Policy(KEY, 0.2, positions="all"), BIAS)),
    ("weak", None): (("mera", Policy(KEY, 0.1), None), AlphaRequired),
    ("weak", "mera+bias"): (("mera+bias", Policy(KEY, 0.1), BIAS), AlphaRequired),
    ("weak both", None): (("mera+bias", Policy(KEY, 0.1), BIAS), AlphaRequired),
    ("weak bias", None): (InvalidInput, InvalidInput),
    ("no bias", "mera+bias"): (Unsupported, Unsupported),
}  # fmt: skip


@pytest.fixture
def ask(good: Probe) -> Any:
    """The plan of a request for task `good`, served by an artifact of the table."""

    def planned(name: str, *, steering_on: bool = True, **steering: Any) -> Any:
        probe = holding(good, **ARTIFACTS[name])
        catalog = Catalog(4, {"good": probe.task}, {probe.digest: probe}, {"good": probe})
        body = {"inputs": "Say: hello Label:", "steering": {"task": "good", **steering}}
        return plan(GenerateBody.model_validate(body), catalog, Limits(steering=steering_on))

    return planned


@pytest.mark.parametrize(("artifact", "method"), APPLIED, ids=str)
def test_nothing_overridden(ask: Any, artifact: str, method: str | None) -> None:
    expected = APPLIED[artifact, method]
    if isinstance(expected, type):
        with pytest.raises(expected, match=r"^steering\.(method|alpha): ") as caught:
            ask(artifact, method=method)
        assert type(caught.value) is expected
        return
    found = ask(artifact, method=method)
    if isinstance(expected, str):
        assert (found.decision, found.reason, found.alpha, found.correction.bias) == ("abstained", expected, None, None)
        assert found.correction.policy in (None, READ)
        assert found.why
        return
    applied, policy, bias, covered = expected
    assert (found.method, found.correction.policy, found.correction.bias, found.decision) == (
        applied,
        policy,
        bias,
        None,
    )
    assert found.alpha == (policy.alpha if policy else None)
    assert (found.why == ()) is covered
    own, certified = ARTIFACTS[artifact]["method"], ARTIFACTS[artifact]["certified"]
    assert (f"method {applied} is not what was certified" in found.why) is (applied != own)
    assert covered is (certified and applied == own)


@pytest.mark.parametrize(("artifact", "method"), OVERRIDDEN, ids=str)
@pytest.mark.parametrize("override", [("alpha", 0.1), ("positions", "all")], ids=lambda override: override[0])
def test_overridden(ask: Any, artifact: str, method: str | None, override: tuple[str, Any]) -> None:
    field, value = override
    expected = OVERRIDDEN[artifact, method][field == "positions"]
    if isinstance(expected, type):
        names = {AlphaRequired: "alpha", Unsupported: "method", InvalidInput: field}[expected]
        with pytest.raises(MeraError, match=rf"^steering\.{names}: ") as caught:
            ask(artifact, method=method, **{field: value})
        assert type(caught.value) is expected
        return
    found = ask(artifact, method=method, **{field: value})
    assert (found.method, found.correction.policy, found.correction.bias) == expected
    assert (found.decision, found.overridden) == (None, (field,))
    assert f"{field} overridden" in found.why


def test_logit_bias_takes_no_layers_and_no_strength(ask: Any) -> None:
    for artifact, method in (("bias", None), ("mera", "logit_bias")):
        with pytest.raises(InvalidInput, match=r"^steering\.layers: logit_bias"):
            ask(artifact, method=method, layers=[0])
    for method in (None, "logit_bias", "mera+bias"):
        with pytest.raises(InvalidInput, match=r"^steering\.strength: only additive and contrastive"):
            ask("both", method=method, strength=1.0)


@pytest.mark.parametrize("artifact", ARTIFACTS)
@pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
def test_a_server_with_steering_off_neither_moves_nor_biases(ask: Any, artifact: str, method: str) -> None:
    found = ask(artifact, method=method, steering_on=False)
    assert (found.decision, found.reason, found.correction.bias) == ("abstained", "disabled", None)
    assert found.correction.policy in (None, READ)


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_none_reads_alone(ask: Any, artifact: str) -> None:
    found = ask(artifact, method="none")
    assert (found.method, found.decision, found.correction.bias) == ("none", "off", None)
    assert found.correction.policy in (None, READ)
