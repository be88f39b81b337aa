"""manifest.json is valid or it is refused with the first field that is wrong; and the digest that names it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, cast

from merasteer.errors import BadArtifact
from merasteer.method.trie import begins_another
from merasteer.store.documents import canonical
from merasteer.store.fields import SHA256, Fields, shown
from merasteer.store.schema import (
    FILES,
    OWN_METHODS,
    SCHEMA,
    LayerScore,
    Manifest,
    ModelSection,
    ProbeSection,
    RuntimeSection,
    SplitsSection,
    SteeringSection,
    TaskSection,
    keys,
    optional_keys,
)
from merasteer.types import (
    ANSWER_POSITIONS,
    CHOOSE,
    DIRECTIONS,
    HOOK_POINTS,
    LAWS,
    MAX_LABEL_TOKENS,
    POSITIONS,
    own_method,
)

__all__ = ["SHORT", "TASK_NAME", "digest_of", "validate"]

SHORT = 12  # hex digits of the digest that name the folder
TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")  # it becomes a folder


def digest_of(manifest: Mapping[str, Any]) -> str:
    """sha256 (hex) of the canonical manifest, its own `digest` left out."""
    return hashlib.sha256(canonical({key: value for key, value in manifest.items() if key != "digest"})).hexdigest()


def validate(raw: object) -> Manifest:
    """`raw` itself, proved to be a manifest of this schema. Raises BadArtifact naming the first field that is wrong."""
    if isinstance(raw, Mapping) and "schema" in raw and (type(raw["schema"]) is not int or raw["schema"] != SCHEMA):
        raise BadArtifact(
            f"schema: {shown(raw['schema'])} is not {SCHEMA}, the version this release reads; upgrade mera-server"
        )
    root = Fields(raw, "", keys(Manifest))
    root.text("digest", SHA256)
    layers, vocab = _model(root.child("model", keys(ModelSection), optional_keys(ModelSection)))
    free = _task(root.child("task", keys(TaskSection)), vocab)
    steering = root.child("steering", keys(SteeringSection), optional_keys(SteeringSection))
    active = _steering(steering, layers, free=free, certified=root.flag("certified"))
    _probe(root.child("probe", keys(ProbeSection)), layers, active)
    runtime = root.child("runtime", keys(RuntimeSection))
    runtime.text("dtype")
    runtime.text("attention")
    runtime.integer("ranks", 1)
    if runtime.value["device"] is not None:
        runtime.text("device")
    _splits(root.child("splits", keys(SplitsSection)))
    seeds = Fields(root.value["seeds"], "seeds", (), closed=False)
    for name in seeds.value:
        seeds.integer(name, -(2**63), 2**64 - 1)
    root.table("versions")
    files = root.child("files", FILES)
    for name in FILES:
        files.text(name, SHA256)
    return cast(Manifest, raw)


def _model(model: Fields) -> tuple[int, int]:
    model.text("id")
    model.text("architecture")
    model.text("tokenizer", SHA256)
    if model.value["weights"] is None:  # of schema 1
        if "files" not in model.value or not model.table("files", SHA256):
            model.refuse("files", "names no file")
    else:
        for name in ("weights", "config", "end_tokens"):
            model.text(name, SHA256)
        if not isinstance(model.value["chat_template"], str) or not isinstance(model.value["configuration"], Mapping):
            model.refuse("configuration", "or chat_template is missing")
    model.integer("width", 1)
    return model.integer("layers", 1), model.integer("vocab", 1)


def _task(task: Fields, vocab: int) -> bool:
    """Whether its answers are free."""
    task.text("name", TASK_NAME)
    task.text("template")
    free = task.choice("choose", CHOOSE) == "free"
    task.choice("position", ANSWER_POSITIONS)
    task.integer("max_new_tokens", 1)
    labels, variants = task.texts("labels"), task.items("variants")
    if len(labels) < 2 or len(variants) != len(labels):
        task.refuse(
            "variants", f"{len(variants)} lists for {len(labels)} labels; two labels or more need one list each"
        )
    owners: dict[tuple[int, ...], str] = {}
    for label, spellings in zip(labels, variants, strict=True):
        for tokens in _spellings(task, label, spellings, vocab):
            if not 1 <= len(tokens) <= (1 if free else MAX_LABEL_TOKENS):
                task.refuse("variants", f"{shown(tokens)} of {shown(label)} is none that this task can have")
            if owners.setdefault(tuple(tokens), label) != label:
                task.refuse(
                    "variants", f"{shown(tokens)} belongs to both {shown(owners[tuple(tokens)])} and {shown(label)}"
                )
    task.flag("chat")
    if task.value["system"] is not None:
        task.text("system")
    if task.value["end"] is not None:
        task.integer("end", 0, vocab - 1)
    elif not free and begins_another(owners):
        task.refuse("end", "null, yet a spelling is the beginning of another")
    for pair in task.items("examples"):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            task.refuse("examples", f"{shown(pair)} is no pair of a prompt and a label")
    return free


def _spellings(task: Fields, label: str, spellings: object, vocab: int) -> list[list[int]]:
    """The token sequences of one label, each a list of ids."""
    if not isinstance(spellings, list) or not spellings or not all(isinstance(one, list) for one in spellings):
        task.refuse("variants", f"the label {shown(label)} has no list of token sequences")
    where = Fields({str(i): one for i, one in enumerate(spellings)}, f"task.variants.{label}", (), closed=False)
    return [where.integers(str(i), 0, vocab - 1) for i in range(len(spellings))]


def _steering(steering: Fields, layers: int, *, free: bool, certified: bool) -> list[int]:
    steering.choice("hook_point", HOOK_POINTS)
    law = LAWS[steering.choice("direction", DIRECTIONS)]  # type: ignore[index]
    if isinstance(steering.value["positions"], list):
        listed = steering.integers("positions", 0, 2**31 - 1)
        if not listed or len(set(listed)) < len(listed):
            steering.refuse("positions", f"{shown(listed)} is not a list of prompt indices, each once")
    else:
        steering.choice("positions", POSITIONS)
    steering.integer("report_layer", 0, layers - 1)
    active = steering.integers("active_layers", 0, layers - 1)
    if active != sorted(set(active)):
        steering.refuse("active_layers", f"{shown(active)} is not ascending without repeats")
    if "method" in steering.value:
        steering.choice("method", OWN_METHODS)
    method = own_method(steering.value)
    if (method == "label_probe") != (law == "label_probe") and method != "logit_bias":
        steering.refuse("direction", f"{shown(steering.value['direction'])}, yet the method is {method}")
    if law == "label_probe" and len(active) != 1:
        steering.refuse("active_layers", f"{shown(active)}, yet a label probe reads one layer")
    if law == "label_probe" and free:
        steering.refuse("direction", "'label_probe', yet the task's answers are free")
    if "strength" in steering.value:
        if law not in ("gated", "proportional") or steering.number("strength") <= 0.0:
            steering.refuse("strength", f"{shown(steering.value['strength'])} is no length of such a step")
    elif law in ("gated", "proportional"):
        steering.refuse("strength", "is missing, yet the step has no length of its own")
    if steering.value["alpha"] is None:
        if certified and method != "logit_bias":
            steering.refuse("alpha", "null, yet the artifact says that it is certified")
    elif method == "logit_bias":
        steering.refuse("alpha", f"{shown(steering.value['alpha'])}, yet a logit bias alone has none")
    elif steering.probability("alpha") and not active:
        steering.refuse("active_layers", "empty, yet there is an alpha")
    return active


def _probe(probe: Fields, layers: int, active: list[int]) -> None:
    probe.text("family")
    seen = set()
    for score in probe.rows("scores", keys(LayerScore), optional_keys(LayerScore)):
        layer = score.integer("layer", 0, layers - 1)
        for name in ("rmse", "dummy_rmse", "standard_error"):
            score.number(name, low=0.0)
        if "auroc" in score.value:
            score.number("auroc", 0.0, 1.0)
        if score.flag("idle") and layer in active:
            score.refuse("idle", f"true, yet layer {layer} is among steering.active_layers")
        if layer in seen:
            score.refuse("layer", f"{layer} occurs twice")
        seen.add(layer)


def _splits(splits: Fields) -> None:
    owners: dict[str, str] = {}
    for name in keys(SplitsSection):
        for digest in splits.texts(name):
            if digest in owners:
                splits.refuse(name, f"shares the row {shown(digest)} with {owners[digest]}; splits must be disjoint")
            owners[digest] = name
