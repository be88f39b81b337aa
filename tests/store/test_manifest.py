"""Every field of the manifest, spoilt one at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merasteer.errors import BadArtifact
from merasteer.store import load
from merasteer.store.manifest import digest_of, validate


@pytest.fixture
def manifest(parts: Any, tmp_path: Path) -> dict[str, Any]:
    return dict(load(parts.publish(tmp_path)).manifest)


def test_a_good_manifest_is_returned_as_it_is(manifest: dict[str, Any]) -> None:
    assert validate(manifest) is manifest


def test_a_method_and_an_auroc_may_stand_and_enter_the_digest(manifest: dict[str, Any]) -> None:
    assert "method" not in manifest["steering"]
    plain = digest_of(manifest)
    manifest["steering"]["method"] = "mera+bias"
    manifest["probe"]["scores"][0]["auroc"] = 0.75
    assert validate(manifest) is manifest
    assert digest_of(manifest) != plain
    manifest["steering"].update(method="mera", alpha=None)
    with pytest.raises(BadArtifact, match=r"steering\.alpha: null"):
        validate(manifest)
    manifest["steering"].update(method="logit_bias", active_layers=[])
    validate(manifest)


def test_the_digest_leaves_itself_out_and_nothing_else(manifest: dict[str, Any]) -> None:
    assert digest_of(manifest) == manifest["digest"] == digest_of({**manifest, "digest": "x"})
    assert digest_of({**manifest, "certified": False}) != manifest["digest"]


SCORE = {"layer": 0, "rmse": 0.2, "dummy_rmse": 0.4, "standard_error": 0.01, "idle": False}
CASES: list[tuple[str, Any, str]] = [
    ("schema", 3, "upgrade mera-server"),
    ("schema", True, "upgrade mera-server"),
    ("digest", "abc", "digest"),
    ("certified", "yes", "certified"),
    ("model.id", "", r"model\.id"),
    ("model.layers", 0, r"model\.layers"),
    ("model.width", 1.5, r"model\.width"),
    ("model.vocab", None, r"model\.vocab"),
    ("model.weights", "short", r"model\.weights"),
    ("model.weights", None, r"model\.files: names no file"),
    ("model.config", "G" * 64, r"model\.config"),
    ("model.chat_template", None, "chat_template is missing"),
    ("model.configuration", None, r"model\.configuration"),
    ("model.end_tokens", 2, r"model\.end_tokens"),
    ("model", "files", "model"),
    ("runtime.device", "", r"runtime\.device"),
    ("runtime.ranks", 0, r"runtime\.ranks"),
    ("model.tokenizer", "G" * 64, r"model\.tokenizer"),
    ("task.name", "../up", r"task\.name"),
    ("task.name", ".hidden", r"task\.name"),
    ("task.labels", ["ham"], r"task\.variants"),
    ("task.labels", ["ham", "ham"], r"task\.labels.*twice"),
    ("task.variants", [[[3]], [[3]]], "'ham' and 'spam'"),
    ("task.variants", [[[3]], []], "'spam' has no list of token sequences"),
    ("task.variants", [[[3]], [[50]]], r"task\.variants\.spam\.0: 50"),
    ("task.variants", [[[3]], [[]]], "none that this task can have"),
    ("task.variants", [[[3]], [[3, 4]]], r"task\.end: null, yet a spelling is the beginning"),
    ("task.choose", "maybe", "maybe"),
    ("task.chat", None, "neither true nor false"),
    ("task.system", "", "non-empty"),
    ("task.examples", [["a"]], "no pair"),
    ("task.end", 50, "outside"),
    ("task.position", "first", r"task\.position.*last, exact"),
    ("task.max_new_tokens", 0, r"task\.max_new_tokens"),
    ("steering.hook_point", "attention", r"steering\.hook_point"),
    ("steering.direction", ["covariance"], r"steering\.direction"),
    ("steering.alpha", None, "certified"),
    ("steering.alpha", 1.0, r"steering\.alpha.*\(0, 1\)"),
    ("steering.active_layers", [2, 0], r"steering\.active_layers"),
    ("steering.active_layers", [0, 3], r"steering\.active_layers"),
    ("steering.active_layers", [], r"steering\.active_layers"),
    ("steering.active_layers", [0, 1, 2], r"probe\.scores\[1\]\.idle"),
    ("steering.positions", "some", r"steering\.positions"),
    ("steering.method", "prayer", r"steering\.method.*mera, logit_bias, mera\+bias"),
    ("steering.method", None, r"steering\.method"),
    ("steering.method", "logit_bias", r"steering\.alpha: 0\.3, yet a logit bias alone has none"),
    ("steering.surprise", 1, "steering: unknown field 'surprise'"),
    ("steering.report_layer", 3, r"steering\.report_layer"),
    ("probe.family", None, r"probe\.family"),
    ("probe.scores", [{"layer": 0}], r"probe\.scores\[0\]\.dummy_rmse: is missing"),
    ("probe.scores", [{**SCORE, "auroc": 1.5}], r"probe\.scores\[0\]\.auroc: 1\.5"),
    ("probe.scores", [{**SCORE, "auroc": None}], r"probe\.scores\[0\]\.auroc: None"),
    ("probe.scores", [{**SCORE, "luck": 1.0}], r"probe\.scores\[0\]: unknown field 'luck'"),
    ("runtime.dtype", 32, r"runtime\.dtype"),
    ("splits.test", ["a1"], "shares the row 'a1' with train"),
    ("splits.train", ["a1", "a1"], "twice"),
    ("seeds.fit", 0.5, r"seeds\.fit"),
    ("versions.torch", 2, r"versions\.torch"),
    ("files", {}, r"files\.calibration\.json: is missing"),
    ("surprise", 1, "unknown field 'surprise'"),
    ("task.surprise", 1, "task: unknown field 'surprise'"),
]


@pytest.mark.parametrize(("path", "value", "reason"), CASES, ids=[f"{path}={value!r}"[:40] for path, value, _ in CASES])
def test_a_wrong_field_is_refused_by_name(manifest: dict[str, Any], path: str, value: object, reason: str) -> None:
    *parents, name = path.split(".")
    section = manifest
    for parent in parents:
        section = section[parent]
    section[name] = value
    with pytest.raises(BadArtifact, match=reason):
        validate(manifest)


@pytest.mark.parametrize("name", ["schema", "model", "task", "splits", "files", "seeds"])
def test_a_missing_section_is_refused_by_name(manifest: dict[str, Any], name: str) -> None:
    del manifest[name]
    with pytest.raises(BadArtifact, match=f"^{name}: is missing"):
        validate(manifest)


def test_a_manifest_stays_valid_for_a_task_named_like_a_file(make: Callable[..., Any], tmp_path: Path) -> None:
    parts = make()
    parts.manifest["task"]["name"] = "latest"
    assert load(parts.publish(tmp_path)).task.name == "latest"
