"""`logit_bias` and `mera+bias` over the real engine, from artifacts made of the demo's parts with another method of their own."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from mera_server.app import create_app
from mera_server.loading import Serving, load
from mera_server.settings import Settings

from merasteer import demo, store
from merasteer.engine import Engine, load_model
from merasteer.pipeline import Bars
from merasteer.pipeline.canaries import measured
from merasteer.tasks import Prompter

from .conftest import ready

FIELDS = [
    {"desk": desk, "text": f"{text} Enter your code {code} online."}
    for desk in "AB"
    for text in ("Win a holiday for two.", "See you at the station.")
    for code in (2220, 2221)
]
ZEROS = {"tokens": 0, "steered_tokens": 0, "cells": 0, "steered_cells": 0, "mean_shift": 0.0, "max_shift": 0.0}
TO_SPAM = (0.0, 40.0)  # in the order of the labels: it decides every answer
NEUTRAL = (3.0, 3.0)

# task -> the artifact's own method, certified, its label bias
ARTIFACTS: dict[str, tuple[str, bool, tuple[float, float] | None]] = {
    "biased": ("logit_bias", True, TO_SPAM),
    "neutral": ("logit_bias", True, NEUTRAL),
    "both": ("mera+bias", True, TO_SPAM),
    "plain": ("mera", True, TO_SPAM),
    "bare": ("mera", True, None),
    "weak_biased": ("logit_bias", False, TO_SPAM),
    "weak_both": ("mera+bias", False, TO_SPAM),
}


def publish(
    folder: Path, task: str, method: str, certified: bool, bias: tuple[float, float] | None, idle: bool = False
) -> None:
    """The certified demo artifact under another task's name, with `method` its own. idle: no layer reads the error."""
    original = store.load(next(path.parent for path in demo.store_dir().glob("*/demo_spam/*/manifest.json")))
    manifest, calibration = (json.loads(json.dumps(dict(part))) for part in (original.manifest, original.calibration))
    for name in ("schema", "digest", "files"):
        del manifest[name]
    manifest["task"]["name"] = task
    manifest["certified"] = certified
    chosen = next(row for row in calibration["candidates"] if row["key"] == calibration["chosen"])
    if method == "logit_bias" or not certified:
        manifest["steering"]["alpha"] = None
    if method != "mera":
        manifest["steering"]["method"] = chosen["method"] = method
    chosen["alpha"] = manifest["steering"]["alpha"]
    if not certified:
        calibration |= {"decision": "abstained", "reason": "uncertified"}
    tensors = {"weight": original.weight, "bias": original.bias, "step": original.step}
    if idle:
        tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        manifest["steering"]["active_layers"], manifest["probe"]["scores"] = [], []
    if bias is not None:
        tensors["label_bias"] = torch.tensor(bias)
    store.publish(folder, manifest=manifest, calibration=calibration, tensors=tensors)


def measure(draft: Path, folder: Path) -> None:
    """The artifacts of `draft` again, with the canaries that a run which certified them would have left behind."""
    loaded = load_model(demo.model_dir())
    with Engine(loaded) as engine, Bars().bar("canaries", 1) as bar:
        for entry in store.scan([draft]):
            artifact = entry.artifact
            assert artifact is not None, entry.reason
            calibration = dict(artifact.calibration)
            calibration.pop("canaries", None)
            if artifact.certified:
                engine.register(artifact.digest, artifact.vectors)
                prompter = Prompter(artifact.task, loaded.tokenizer)
                found = measured(engine, prompter, artifact.correction, loaded.dtype, bar)
                calibration["canaries"] = found.to_json()
            manifest = {
                key: value for key, value in artifact.manifest.items() if key not in ("schema", "digest", "files")
            }
            held = {one.name: getattr(artifact, one.name) for one in dataclasses.fields(artifact)}
            tensors = {name: tensor for name, tensor in held.items() if isinstance(tensor, torch.Tensor)}
            store.publish(folder, manifest=manifest, calibration=calibration, tensors=tensors)


@pytest.fixture(scope="module")
def methods_serving(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    draft, folder = tmp_path_factory.mktemp("draft"), tmp_path_factory.mktemp("methods")
    for task, facts in ARTIFACTS.items():
        publish(draft, task, *facts)
    publish(draft, "idle", "logit_bias", True, TO_SPAM, idle=True)
    measure(draft, folder)
    found = load(Settings(store=folder))
    assert set(ARTIFACTS) <= set(found.catalog.latest), [entry.reason for entry in found.catalog.entries]
    yield found
    found.engine.stop()


@pytest.fixture
async def methods_client(methods_serving: Serving) -> AsyncIterator[httpx.AsyncClient]:
    app = ready(create_app(loader=lambda _: methods_serving))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as found:
        yield found


@pytest.fixture
def ask(methods_client: httpx.AsyncClient) -> Any:
    """Posts to /generate for one token; the status and the body."""

    async def post(task: str, fields: dict[str, str], **steering: Any) -> tuple[int, dict[str, Any]]:
        body = {"inputs": fields, "parameters": {"max_new_tokens": 1}, "steering": {"task": task, **steering}}
        response = await methods_client.post("/generate", json=body)
        return response.status_code, response.json()

    return post


async def served(ask: Any, task: str, fields: dict[str, str], **steering: Any) -> dict[str, Any]:
    status, body = await ask(task, fields, **steering)
    assert status == 200, body
    return body


@pytest.mark.parametrize("method", [None, "logit_bias"])
async def test_a_certified_bias_is_applied_and_covered(ask: Any, method: str | None) -> None:
    decisions = set()
    for fields in FIELDS:
        mera = (await served(ask, "biased", fields, method=method))["mera"]
        plain = (await served(ask, "biased", fields, method="none"))["mera"]
        assert (mera["method"], mera["alpha"], mera["reason"], mera["steering"]) == ("logit_bias", None, None, ZEROS)
        assert (mera["guarantee"]["certified"], mera["guarantee"]["why"]) == (True, None)
        assert mera["answer"]["label"] == "spam"
        assert mera["answer"]["probabilities"]["spam"] > 0.99
        assert mera["decision"] == ("steered" if plain["answer"]["label"] != "spam" else "not_needed")
        assert mera["predicted_error"]["after"] == mera["predicted_error"]["before"]
        assert mera["predicted_error"]["before"] == pytest.approx(plain["predicted_error"]["before"], abs=1e-5)
        decisions.add(mera["decision"])
    assert decisions == {"steered", "not_needed"}


async def test_a_bias_that_favours_no_label_is_not_needed(ask: Any) -> None:
    for fields in FIELDS[:2]:
        found, plain = await served(ask, "neutral", fields), await served(ask, "neutral", fields, method="none")
        assert found["mera"]["decision"] == "not_needed"
        assert found["generated_text"] == plain["generated_text"]
        assert found["mera"]["answer"]["probabilities"] == pytest.approx(
            plain["mera"]["answer"]["probabilities"], abs=1e-5
        )


async def test_a_bias_needs_no_readout(ask: Any) -> None:
    mera = (await served(ask, "idle", FIELDS[0]))["mera"]
    plain = (await served(ask, "idle", FIELDS[0], method="none"))["mera"]
    assert (mera["decision"], mera["reason"]) == (
        "steered" if plain["answer"]["label"] != "spam" else "not_needed",
        None,
    )
    assert mera["answer"]["label"] == "spam"
    assert (mera["predicted_error"], mera["guarantee"]["certified"]) == (None, True)
    mera = (await served(ask, "idle", FIELDS[0], method="mera"))["mera"]
    assert (mera["decision"], mera["reason"], mera["guarantee"]) == ("abstained", "no_probe", None)


async def test_both_are_applied_and_covered(ask: Any, methods_serving: Serving) -> None:
    for fields in FIELDS:
        both = (await served(ask, "both", fields))["mera"]
        step = (await served(ask, "both", fields, method="mera"))["mera"]
        assert (both["method"], both["guarantee"]["certified"]) == ("mera+bias", True)
        assert both["alpha"] == step["alpha"] == methods_serving.catalog.latest["both"].alpha
        assert both["steering"] == pytest.approx(step["steering"], abs=1e-5)
        assert both["predicted_error"]["after"] == pytest.approx(step["predicted_error"]["after"], abs=1e-5)
        assert both["answer"]["label"] == "spam"
        changed = both["answer"]["label"] != step["answer"]["label"]
        assert both["decision"] == ("steered" if changed or both["steering"]["steered_cells"] else "not_needed")
        assert step["guarantee"]["why"] == "method mera is not what was certified"


@pytest.mark.parametrize("method", ["logit_bias", "mera+bias"])
async def test_an_explicit_choice_is_served_without_a_guarantee(ask: Any, method: str) -> None:
    mera = (await served(ask, "plain", FIELDS[0], method=method))["mera"]
    assert mera["method"] == method
    assert mera["decision"] in ("steered", "not_needed")
    assert mera["answer"]["label"] == "spam"
    assert mera["guarantee"]["certified"] is False
    assert mera["guarantee"]["why"] == f"method {method} is not what was certified"


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("weak_biased", None),
        ("weak_biased", "logit_bias"),
        ("weak_both", None),
        ("weak_both", "mera+bias"),
    ],
)
async def test_what_was_not_certified_is_not_applied(ask: Any, task: str, method: str | None) -> None:
    for fields in FIELDS[:2]:
        found = await served(ask, task, fields, method=method)
        mera = found["mera"]
        assert (mera["decision"], mera["reason"], mera["alpha"]) == ("abstained", "uncertified", None)
        assert mera["steering"] == ZEROS
        assert mera["guarantee"]["certified"] is False
        untouched = await served(ask, task, fields, method="none")
        assert found["generated_text"] == untouched["generated_text"]
        assert mera["answer"]["probabilities"] == pytest.approx(untouched["mera"]["answer"]["probabilities"], abs=1e-5)


async def test_an_override_moves_and_biases(ask: Any) -> None:
    mera = (await served(ask, "weak_both", FIELDS[0], alpha=0.001, positions="all"))["mera"]
    assert (mera["method"], mera["decision"], mera["alpha"]) == ("mera+bias", "steered", 0.001)
    assert mera["answer"]["label"] == "spam"
    assert mera["guarantee"]["why"] == "the artifact is not certified; alpha, positions overridden"


@pytest.mark.parametrize(
    ("task", "steering", "code", "names"),
    [
        ("bare", {"method": "logit_bias"}, "unsupported", "steering.method"),
        ("bare", {"method": "mera+bias"}, "unsupported", "steering.method"),
        ("biased", {"alpha": 0.5}, "invalid_input", "steering.alpha"),
        ("biased", {"positions": [0]}, "invalid_input", "steering.positions"),
        ("biased", {"method": "logit_bias", "layers": [0]}, "invalid_input", "steering.layers"),
        ("biased", {"method": "mera", "layers": [0]}, "alpha_required", "steering.alpha"),
        ("biased", {"method": "mera"}, "alpha_required", "steering.alpha"),
        ("biased", {"method": "mera+bias"}, "alpha_required", "steering.alpha"),
        ("both", {"positions": [100_000]}, "invalid_input", "steering.positions"),
    ],
)
async def test_refusals(ask: Any, task: str, steering: dict[str, Any], code: str, names: str) -> None:
    status, body = await ask(task, FIELDS[0], **steering)
    assert (status, body["error"]["code"]) == (422, code)
    assert body["error"]["message"].startswith(f"{names}: ")


async def test_probes_and_tasks_tell_the_method(methods_client: httpx.AsyncClient) -> None:
    probes = (await methods_client.get("/probes")).json()["probes"]
    assert {row["task"]: row["method"] for row in probes if row["task"] in ARTIFACTS} == {
        task: method for task, (method, _, _) in ARTIFACTS.items()
    }
    digest = next(row["digest"] for row in probes if row["task"] == "biased")
    assert (await methods_client.get(f"/probes/{digest}")).json()["method"] == "logit_bias"
    row = next(row for row in (await methods_client.get("/tasks")).json()["tasks"] if row["name"] == "biased")
    told = {
        "name": "biased",
        "labels": ["ham", "spam"],
        "probe": digest,
        "certified": True,
        "alpha": None,
        "caution": None,
    }
    assert row == told


async def test_methods_share_a_batch(ask: Any) -> None:
    """Requests of every method at once: each answer is the one it gets alone."""
    asked = [
        (task, fields, method)
        for fields in FIELDS[:4]
        for task, method in (("both", None), ("both", "none"), ("biased", None), ("plain", None), ("plain", "additive"))
    ]
    alone = [await served(ask, task, fields, method=method) for task, fields, method in asked]
    together = await asyncio.gather(*(served(ask, task, fields, method=method) for task, fields, method in asked))
    for one, other in zip(alone, together, strict=True):
        assert one["generated_text"] == other["generated_text"]
        assert one["mera"]["decision"] == other["mera"]["decision"]
        assert one["mera"]["answer"]["probabilities"] == pytest.approx(
            other["mera"]["answer"]["probabilities"], abs=1e-4
        )
