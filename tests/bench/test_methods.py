"""Every method of the study against the slow plain implementation: what it fits, at every kind of position and layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merasteer.bench import METHODS, Method
from merasteer.bench.methods import FixedStrength, Mera
from merasteer.engine import Engine, EngineConfig
from merasteer.pipeline import Bars, Job, Options, prepare
from merasteer.pipeline.collect import collect
from merasteer.pipeline.fit import fit, vectors_of
from merasteer.pipeline.workspace import Output
from merasteer.types import METHODS as METHODS_SERVED
from merasteer.types import Correction, SteeringVectors

from ..engine.conftest import plain_generate

POSITIONS: list[Any] = ["generation", "all", "last", (0, 3)]
# The rows of the default directions differ in what may be chosen behind the fit: one stands for all.
SAME = ("logit_bias", "mera+bias", "certified-best")

STEERING = [name for name, method in METHODS.items() if isinstance(method, FixedStrength | Mera) and name not in SAME]
OPTIONS = Options(ordering=40)


@pytest.fixture(scope="module")
def job(loaded: Any, task_writer: Any, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("methods")
    return prepare(loaded, task_writer(folder, train=200, calibration=40, test=40), folder / "store", OPTIONS)


@pytest.fixture(scope="module")
def collected(job: Job) -> Output:
    return collect(job, Bars())


def asked(method: Method, job: Job, fitted: Output) -> Iterator[tuple[SteeringVectors, Correction]]:
    """What the method has the engine do: the vectors and corrections that it would send."""
    for key, vectors in vectors_of(fitted).items():
        if isinstance(method, FixedStrength):
            yield method.vectors(vectors, fitted), method.correction("v", job)
        else:
            facts = fitted.facts["readouts"][key]
            alpha, named = facts["alphas"][len(facts["alphas"]) // 2], facts["direction"] == "label_probe"
            way: Any = "label_probe" if named else "mera"
            yield vectors, Correction(way, key, alpha, facts["strengths"][-1], job.options.positions)


@pytest.mark.parametrize("name", STEERING)
def test_every_method_at_every_position_and_layer_is_the_plain_implementation(
    name: str, job: Job, collected: Output
) -> None:
    method, found = METHODS[name], list[tuple[SteeringVectors, Correction]]()
    base = method.options(OPTIONS)
    for layers in ["all", (1, 2)] if base.layers == "all" else [base.layers]:
        options = replace(base, layers=layers)
        fitted = fit(replace(job, options=options), collected, Bars())
        assert fitted.facts["readouts"], "the planted failure is there to be read"
        for positions in POSITIONS:
            own = replace(job, options=replace(options, positions=positions))
            for vectors, correction in asked(method, own, fitted):
                assert correction.positions == positions
                if layers == (1, 2):
                    assert set(vectors.active_layers) <= {1, 2}
                elif layers != "all":
                    assert vectors.active_layers == (vectors.report_layer,)
                found.append((vectors, replace(correction, readout=f"v{len(found)}")))
    compare(job, found)


def compare(job: Job, found: list[tuple[SteeringVectors, Correction]]) -> None:
    """All of it in one batch, against one prompt at a time: a label is chosen, and two tokens are, freely."""
    prompts, answers = job.prompts(job.splits.test[:2]), []
    freely = replace(job.served, choose="free").answer_tokens
    rows = sum(vectors.rows for vectors, _ in found)
    with Engine(job.loaded, EngineConfig(max_requests=16, cache_tokens=2048, max_policies=rows)) as engine:
        for vectors, correction in found:
            engine.register(str(correction.readout), vectors)
        for vectors, correction in found:
            for request in prompts.requests(correction):
                free = replace(request, choice=None, variants=freely, max_new_tokens=2, acts=2)
                ways = (request,) if vectors.law == "label_probe" else (request, free)  # a free answer has no label
                answers += [(vectors, one, engine.submit(one)) for one in ways]
        answers = [(vectors, request, future.result(60)) for vectors, request, future in answers]
    for vectors, request, answer in answers:
        truth = plain_generate(job.loaded.model, request.prompt, request.max_new_tokens, vectors, request.policy)
        assert answer.steering.steered_cells == len(truth.moved)
        assert truth.logits is not None
        logits = [truth.logits[[token for (token,) in ids]].max() for ids in job.served.variants]
        classes = torch.stack(logits).softmax(-1)
        assert answer.answer.probabilities == pytest.approx(classes.tolist(), abs=1e-4)
        if request.choice is None:
            assert list(answer.tokens) == truth.tokens
        else:
            said = truth.said if vectors.law == "label_probe" else None
            assert answer.answer.label == (int(classes.argmax()) if said is None else said)
            assert answer.tokens in job.served.variants[answer.answer.label]
    acted = [answer.steering.steered_cells or answer.answer.by == "label_probe" for _, _, answer in answers]
    assert any(acted), "nothing moved: the comparison said nothing"


def test_every_method_says_what_it_does_and_how_it_is_asked_for() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.about
        assert method.request in (None, *METHODS_SERVED)
    chosen = [method.options(OPTIONS) for method in METHODS.values() if isinstance(method, Mera)]
    covered = {(one.layers, one.family, one.directions, one.top_k) for one in chosen}
    steps = [("euclidean",), ("covariance",)]
    for layers in ("best", "median", "worst"):
        assert {(layers, "ridge", step, 100) for step in steps} <= covered
    assert {("all", "logistic", step, 100) for step in steps} <= covered
    for k in (50, 100, 200):
        assert {("all", "ridge", step, k) for step in [("contrastive",), ("contrastive_covariance",)]} <= covered


def test_rows_of_mera_choose_among_steps_only(job: Job) -> None:
    for name, method in METHODS.items():
        if isinstance(method, Mera) and name.startswith("mera") and name != "mera+bias":
            assert method.options(OPTIONS).candidates == ("mera",)


def test_the_instruction_stands_in_front_and_the_answer_position_stays(job: Job, monkeypatch: Any) -> None:
    from merasteer.bench import methods

    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(methods, "INSTRUCTION", "g0 g1 ")
    real = methods.answers
    monkeypatch.setattr(
        methods, "answers", lambda engine, asked, bar: seen.extend(r.prompt for r in asked) or real(engine, asked, bar)
    )
    methods.Instruction().measure(job, Bars())
    plain = job.prompts(job.splits.test).tokens
    assert [prompt[2:] for prompt in seen] == list(plain)
    assert {prompt[:2] for prompt in seen} == {tuple(job.loaded.tokenizer("g0 g1")["input_ids"])}


def test_names_are_file_names() -> None:
    """Records lie under them, and they are rows of a table."""
    for name in METHODS:
        assert Path(name).name == name
