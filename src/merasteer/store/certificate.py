"""calibration.json: every candidate, the ones tested, the decision. Keys beside those checked here may stand.

test, epsilon, delta, chances      what was tested, and at which level (δ / chances each)
decision, reason                   "certified" and null, or "abstained" and why: "uncertified", "no_probe" or "collapse"
chosen                             key of the candidate that the decision is about, or null
candidates                         key, hook_point, direction, alpha (null: a logit bias), gain on the ordering subset;
                                   method where it is not "mera"; strength of a step of given length
canaries                           optional: what the certified engine gave for some prompts (`merasteer.engine.canaries`)
level, attempt, entry              at which level the test was made, as the how-manieth on these rows, by which line of the ledger
tested                             key, n, gained, lost, p_value, gain, lower_bound on the calibration split; collapse, below_majority,
                                   broken (`method.harm`)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merasteer.errors import BadArtifact
from merasteer.method.certify import VALID_TESTS
from merasteer.store.fields import Fields, shown
from merasteer.store.schema import OWN_METHODS, Manifest
from merasteer.types import DIRECTIONS, HOOK_POINTS, own_method

__all__ = ["agree", "certificate_of", "validate"]

KEYS = ("test", "epsilon", "delta", "chances", "decision", "reason", "chosen", "candidates", "tested")
CANDIDATE = ("key", "hook_point", "direction", "alpha", "gain")
CANARY = ("tokens", "z", "log_q", "corrected", "label")
TESTED = ("key", "n", "gained", "lost", "p_value", "gain", "lower_bound")


def validate(raw: object) -> Mapping[str, Any]:
    """`raw` itself, proved to hold the fields above. Raises BadArtifact naming the first that is wrong."""
    root = Fields(raw, "", KEYS, closed=False)
    root.text("test")
    root.number("epsilon", -1.0, 1.0)
    root.probability("delta")
    root.integer("chances", 1)
    if "level" in root.value:  # of schema 2: artifacts of before were tested at δ
        root.probability("level")
        root.integer("attempt", 1)
        root.text("entry")
    certified = root.choice("decision", ("certified", "abstained")) == "certified"
    if certified != (root.value["reason"] is None):
        root.refuse("reason", f"{shown(root.value['reason'])} does not go with the decision {root.value['decision']}")
    if not certified:
        root.choice("reason", ("uncertified", "no_probe", "collapse"))
    keys = [_candidate(row) for row in root.rows("candidates", CANDIDATE, closed=False)]
    tested = [_tested(row) for row in root.rows("tested", TESTED, closed=False)]
    if len(set(keys)) != len(keys) or len(set(tested)) != len(tested):
        root.refuse("candidates", "two candidates, or two tests, have the same key")
    if stray := set(tested) - set(keys):
        root.refuse("tested", f"{shown(min(stray))} is not among the candidates")
    if root.value["chosen"] is not None and root.text("chosen") not in keys:
        root.refuse("chosen", f"{shown(root.value['chosen'])} is not among the candidates")
    if certified and root.value["chosen"] not in tested:
        root.refuse("chosen", f"{shown(root.value['chosen'])} is certified without being among the tested")
    if "canaries" in root.value:
        _canaries(root.child("canaries", ("tolerance", "prompts")))
    return root.value


def _canaries(canaries: Fields) -> None:
    canaries.number("tolerance", 0.0)
    for row in canaries.rows("prompts", CANARY):
        if not row.integers("tokens", 0, 2**31 - 1):
            row.refuse("tokens", "is empty")
        for name in ("z", "log_q", "corrected"):
            numbers = Fields({str(i): one for i, one in enumerate(row.items(name))}, row.path(name), (), closed=False)
            for place in numbers.value:
                numbers.number(place)
        if row.value["label"] is not None:
            row.integer("label", 0, len(row.value["log_q"]) - 1)


def _candidate(row: Fields) -> str:
    for name, options in (("hook_point", HOOK_POINTS), ("direction", DIRECTIONS)):
        if row.value[name] is not None:
            row.choice(name, options)
    if row.value["alpha"] is not None:
        row.probability("alpha")
    if "method" in row.value:
        row.choice("method", OWN_METHODS)
    if "strength" in row.value:
        row.number("strength", 0.0)
    row.number("gain", -1.0, 1.0)
    return row.text("key")


def _tested(row: Fields) -> str:
    n = row.integer("n", 0)
    if row.integer("gained", 0, n) + row.integer("lost", 0, n) > n:
        row.refuse("gained", f"{row.value['gained']} gained and {row.value['lost']} lost are more than n = {n}")
    row.number("p_value", 0.0, 1.0)
    row.number("gain", -1.0, 1.0)
    row.number("lower_bound", -1.0, 1.0)
    return row.text("key")


def agree(manifest: Manifest, calibration: Mapping[str, Any]) -> None:
    """Raise BadArtifact unless a certified manifest serves the very candidate whose test passed. Both are validated."""
    if not manifest["certified"]:
        return
    if calibration["decision"] != "certified":
        raise BadArtifact("certified: true, yet calibration.json says abstained; publish the artifact again")
    if calibration["test"] not in VALID_TESTS:
        raise BadArtifact(f"test: {shown(calibration['test'])} cannot certify; use one of {', '.join(VALID_TESTS)}")
    chosen = _row(calibration, "candidates", calibration["chosen"])
    served = {"strength": None, **manifest["steering"], "method": own_method(manifest["steering"])}
    # A bias alone has no hook point and no direction: the readouts beside it only watch.
    shared = ("alpha",) if served["method"] == "logit_bias" else ("hook_point", "direction", "alpha", "strength")
    for name in ("method", *shared):
        tested = chosen.get(name, "mera" if name == "method" else None)
        if served[name] != tested:
            raise BadArtifact(
                f"steering.{name}: {shown(served[name])} is not the certified {shown(tested)}; publish again"
            )
    level = calibration.get("level", calibration["delta"]) / calibration["chances"]
    if (p := _row(calibration, "tested", calibration["chosen"])["p_value"]) > level * (1 + 1e-9):
        raise BadArtifact(
            f"tested.p_value: {p:g} is above the level {level:g}, yet certified is true; publish the artifact again"
        )


def certificate_of(calibration: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was tested and what came of it, flat and JSON-able: the chosen candidate, else the one that was refused, else the first tested.

    None where nothing was tested.
    """
    if not calibration["tested"]:
        return None
    tested = {row["key"]: row for row in calibration["tested"]}
    shared = {name: calibration[name] for name in ("test", "delta", "epsilon", "chances")}
    shared |= {"level": calibration.get("level", calibration["delta"]), "attempt": calibration.get("attempt")}
    level = shared["level"] / shared["chances"]
    refused = (row for row in calibration["tested"] if calibration["reason"] == "collapse" and row["p_value"] <= level)
    row = tested.get(calibration["chosen"]) or next(refused, calibration["tested"][0])
    effects = {name: row.get(name) for name in ("collapse", "below_majority", "broken")}
    return {**shared, **{name: row[name] for name in TESTED}, **effects, "candidates": len(calibration["candidates"])}


def _row(calibration: Mapping[str, Any], table: str, key: str) -> Mapping[str, Any]:
    return next(row for row in calibration[table] if row["key"] == key)
