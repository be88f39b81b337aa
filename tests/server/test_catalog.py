"""Tasks by name, in the documented order; probes by prefix."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from mera_server.catalog import Catalog, Probe, probe_of

from merasteer.conditions import Conditions
from merasteer.errors import BadTask, UnknownProbe
from merasteer.meaning import ModelMeaning
from merasteer.types import Correction

HERE = Conditions(ModelMeaning("w", "c", "t", "", "e"), "float32", "cpu", "sdpa")


def test_the_listing_puts_the_certified_first(catalog: Catalog) -> None:
    assert [row.model_dump() for row in catalog.listing().tasks] == [
        {
            "name": "good",
            "labels": ["ham", "spam"],
            "probe": "aa" * 32,
            "certified": True,
            "alpha": 0.3,
            "caution": None,
        },
        {
            "name": "weak",
            "labels": ["ham", "spam"],
            "probe": "bb" * 32,
            "certified": False,
            "alpha": None,
            "caution": None,
        },
        {"name": "bare", "labels": ["ham", "spam"], "probe": None, "certified": False, "alpha": None, "caution": None},
    ]


@pytest.mark.parametrize(
    ("reason", "tested", "caution"),
    [
        (None, {"collapse": None, "below_majority": False}, None),
        (None, {"collapse": None, "below_majority": True}, "below_majority"),
        (None, {"collapse": "ham is never answered", "below_majority": False}, "collapse"),  # --allow-collapse
        ("collapse", {"collapse": "ham is never answered", "below_majority": False}, "collapse"),
        (
            "uncertified",
            {"collapse": "ham is never answered", "below_majority": False},
            None,
        ),  # it failed: never served
        ("uncertified", {"collapse": None, "below_majority": True}, None),
        (None, {}, None),  # from before there were such words
    ],
)
def test_the_caution_is_of_what_passed_its_test(
    reason: str | None, tested: dict[str, object], caution: str | None
) -> None:
    row = {"key": "k", "n": 250, "gained": 30, "lost": 5, "p_value": 0.01, "gain": 0.1, "lower_bound": 0.0, **tested}
    calibration = {"test": "mcnemar", "epsilon": 0.0, "delta": 0.05, "chances": 1, "candidates": [{"key": "k"}],
                   "decision": "abstained" if reason else "certified", "reason": reason, "chosen": None if reason else "k",
                   "tested": [row]}  # fmt: skip
    manifest = {"digest": "aa" * 32, "steering": {"active_layers": [0], "direction": "euclidean"}}
    artifact = SimpleNamespace(
        correction=Correction(), conditions=None, manifest=manifest, calibration=calibration, digest="aa" * 32, task=None,
        certified=reason is None, label_bias=None,
    )  # fmt: skip
    assert probe_of(artifact, HERE, frozenset()).caution == caution  # type: ignore[arg-type]


def test_a_task_that_this_model_cannot_serve_is_a_new_error_each_time(catalog: Catalog) -> None:
    """One instance that is raised for every request keeps the frames of all of them."""
    found = []
    for _ in range(2):
        with pytest.raises(BadTask, match="no such token") as caught:
            catalog.task("broken")
        found.append(caught.value)
    assert found[0] is not found[1]


def test_another_runtime_is_not_certified(catalog: Catalog, good: Probe) -> None:
    other = replace(catalog, latest={**catalog.latest, "good": replace(good, mismatch="made elsewhere")})
    assert not other.listing().tasks[0].certified


def test_probes_by_prefix(catalog: Catalog, good: Probe) -> None:
    assert catalog.probe("aaa") is good
    with pytest.raises(UnknownProbe):
        catalog.probe("c")


def test_a_probe_that_is_not_resident_is_unknown(catalog: Catalog, good: Probe) -> None:
    with pytest.raises(UnknownProbe):
        replace(catalog, probes={good.digest: good}).probe("bb")


@pytest.mark.parametrize(
    ("found", "mean"),
    [
        ({"mean": 0.25, "n": 250}, 0.25),
        ({"mean": 0, "n": 1}, 0.0),
        (None, None),
        (0.25, None),
        ({}, None),
        ({"mean": None}, None),
        ({"mean": True}, None),
        ({"mean": "0.25"}, None),
        ({"mean": float("nan")}, None),
        ({"mean": 1.5}, None),
    ],
)
def test_the_calibration_rows_error_is_optional(found: object, mean: float | None) -> None:
    manifest = {
        "digest": "aa" * 32,
        "certified": False,
        "steering": {"active_layers": [0], "positions": "generation", "alpha": None, "direction": "euclidean"},
    }
    calibration = {"tested": [], **({} if found is None else {"predicted_error": found})}
    artifact = SimpleNamespace(
        correction=Correction(),
        conditions=None,
        manifest=manifest,
        calibration=calibration,
        digest="aa" * 32,
        task=None,
        certified=False,
        alpha=None,
        label_bias=None,
    )
    assert probe_of(artifact, HERE, frozenset()).calibration_error == mean  # type: ignore[arg-type]
