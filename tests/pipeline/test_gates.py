"""Items whose gate stays shut need no pass: held against asking everybody, at every hook point, direction, α and bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from merasteer import store as artifacts
from merasteer.engine import Engine, LoadedModel, load_model
from merasteer.method.steering import unit_step
from merasteer.pipeline import Bars, Job, Options, asking, prepare, ranking, run
from merasteer.pipeline.asking import Asker
from merasteer.pipeline.batch import generations, running
from merasteer.pipeline.calibrate import steps_of
from merasteer.pipeline.collect import collect
from merasteer.pipeline.draft import Journal, journal_of
from merasteer.pipeline.fit import fit, vectors_of
from merasteer.pipeline.gates import Known
from merasteer.pipeline.ranking import Ranking, key_of
from merasteer.types import DIRECTIONS, HOOK_POINTS, LAWS, Correction, Generation, SteeringVectors

BIAS = (0.0, 0.7)


def with_bias(steps: Sequence[Correction]) -> list[Correction]:
    return [
        *steps,
        *(replace(one, method="mera+bias", bias=BIAS) for one in steps[::3] if one.method == "mera"),
        Correction("logit_bias", bias=BIAS),
    ]


def everybody(engine: Engine, job: Job, one: Correction) -> list[Generation]:
    prompts = job.prompts(job.splits.test)
    with Bars().bar("", len(prompts.tokens)) as bar:
        return list(generations(engine, prompts.requests(one), bar))


def compared(job: Job, vectors: dict[str, SteeringVectors], corrections: Sequence[Correction], folder: Path) -> float:
    """Holds the short way against the long one; the share of passes that it saved."""
    known = Known.of(job.served, job.loaded.dtype, collect(job, Bars()), vectors, "test")
    prompts, shut = job.prompts(job.splits.test), 0
    with running(job.loaded, prompts.longest) as engine, journal_of(folder, "test") as journal:
        for key, one in vectors.items():
            engine.register(key, one)
        asker = Asker(engine, prompts, known, journal)
        found = asker.ask("test", corrections, Bars())
        for one, what in zip(corrections, found, strict=True):
            full = everybody(engine, job, one)
            answered = [generation.answer for generation in full]
            assert what.answers.label.tolist() == [-1 if a.label is None else a.label for a in answered], key_of(one)
            np.testing.assert_allclose(what.answers.probabilities, [a.probabilities for a in answered], atol=1e-4)
            if one.readout is not None:
                read = [generation.predicted_error.before for generation in full]
                np.testing.assert_allclose(what.error, read, atol=1e-4)
            moved = np.array([generation.steering.steered_tokens > 0 for generation in full])
            assert not (known.shut(one) & moved).any()
            shut += int(known.shut(one).sum())
    return shut / (len(corrections) * len(prompts.tokens))


@pytest.mark.parametrize("choose", ["labels", "free"])
def test_the_answers_are_those_of_asking_everybody(loaded: LoadedModel, make_task, tmp_path: Path, choose: str) -> None:
    task = make_task(train=120, calibration=40, test=40)
    if choose == "free":
        task.write_text(task.read_text().replace("[data]", '[answer]\nchoose = "free"\nposition = "last"\n[data]'))
    directions = tuple(name for name in DIRECTIONS if name != "label_probe")
    job = prepare(loaded, task, tmp_path / "store", Options(ordering=40, directions=directions))
    fitted = fit(job, collect(job, Bars()), Bars())
    steps = steps_of(fitted, "generation")
    laws = {LAWS[fitted.facts["readouts"][one.readout]["direction"]] for one in steps}
    assert laws == {"closed_form", "gated", "proportional"} | ({"label_probe"} if choose == "labels" else set())
    corrections = with_bias(steps) if choose == "labels" else steps
    assert 0.1 < compared(job, vectors_of(fitted), corrections, tmp_path) < 0.9


@pytest.mark.parametrize(("seed", "point"), list(enumerate(HOOK_POINTS)))
def test_on_random_models_and_vectors_too(model_folder: Path, make_task, tmp_path: Path, seed: int, point: Any) -> None:
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "random")
    tokenizer.save_pretrained(tmp_path / "random")
    job = prepare(
        load_model(tmp_path / "random", device="cpu"), make_task(train=60, calibration=20, test=30), tmp_path / "store",
        Options(ordering=20, hook_points=(point,)),
    )  # fmt: skip
    weight, u = torch.randn(2, 4, 24).unbind()
    weight[1] = 0.0
    u = torch.where((weight * u).sum(-1, keepdim=True) < 0, -u, u)
    vectors = {"v": SteeringVectors(point, weight, torch.randn(4), unit_step(weight, u), 2)}
    reads = Known.of(job.served, job.loaded.dtype, collect(job, Bars()), vectors, "test").reads["v"]
    alphas = torch.from_numpy(np.quantile(reads.z.max(axis=1), np.linspace(0.0, 1.0, 4))).sigmoid().tolist()
    steps = [
        Correction("mera", "v", min(max(alpha, 1e-6), 1 - 1e-6), positions=positions, layers=layers)
        for alpha in alphas
        for positions in ("generation", "last", "all", (2, 5))
        for layers in (None, (0, 3))
    ]
    assert 0.1 < compared(job, vectors, with_bias(steps), tmp_path) < 0.9


def test_what_acts_elsewhere_or_is_decided_later_is_always_asked(
    loaded: LoadedModel, make_task, tmp_path: Path
) -> None:
    task = make_task(train=60, calibration=20, test=20)
    vectors = {
        "v": SteeringVectors("residual", torch.full((3, 32), 0.01), torch.zeros(3), torch.full((3, 32), 3.125), 0)
    }
    never = Correction("mera", "v", 1 - 1e-12)  # opens for nobody
    text = task.read_text()
    for answer in ("", '[answer]\nposition = "exact"\nmax_new_tokens = 3\n'):
        task.write_text(text.replace("[data]", f"{answer}[data]"))
        job = prepare(loaded, task, tmp_path / f"store{len(answer)}", Options(ordering=20))
        known = Known.of(job.served, job.loaded.dtype, collect(job, Bars()), vectors, "test")
        assert known.shut(never).all() == (not answer)
        assert known.shut(Correction(readout="v")).all()
        for one in (
            replace(never, positions="all"), replace(never, positions=(3,)), replace(never, strength=0.1),
            Correction("additive", "v", strength=1.0), replace(never, alpha=1e-12),
        ):  # fmt: skip
            assert not known.shut(one).any()


def test_an_item_beside_its_threshold_is_asked(loaded: LoadedModel, make_task, tmp_path: Path) -> None:
    job = prepare(loaded, make_task(train=60, calibration=20, test=20), tmp_path / "store", Options(ordering=20))
    w = torch.zeros(3, 32)
    w[1, 0] = 1.0
    vectors = {"v": SteeringVectors("residual", w, torch.zeros(3), w.clone(), 1)}
    known = Known.of(job.served, job.loaded.dtype, collect(job, Bars()), vectors, "test")
    z = known.reads["v"].z[:, 0]
    top = float(z.max())
    for above, asked in ((2e-3, 0), (5e-4, 1), (-5e-4, 1)):
        alpha = 1 / (1 + np.exp(-(top + above)))
        assert (~known.shut(Correction("mera", "v", alpha))).sum() >= asked
        assert bool(known.shut(Correction("mera", "v", alpha))[z.argmax()]) == (not asked)


def ranked(job: Job, folder: Path, first: int, monkeypatch: pytest.MonkeyPatch) -> Ranking:
    monkeypatch.setattr(ranking, "FIRST", first)
    collected = collect(job, Bars())
    fitted = fit(job, collected, Bars())
    vectors = vectors_of(fitted)
    known = Known.of(job.served, job.loaded.dtype, collected, vectors, "train", job.ordering)
    prompts = job.prompts([job.splits.train[i] for i in job.ordering])
    labels = np.array([job.splits.train[i].label for i in job.ordering])
    with (
        running(job.loaded, prompts.longest, vectors=vectors) as engine,
        journal_of(folder, f"rank{first}") as journal,
    ):
        found = Ranking(Asker(engine, prompts, known, journal), known, labels, Bars())
        found.gains(steps_of(fitted, "generation"))
    return found


def test_steps_that_change_nothing_where_errors_are_expected_are_dropped_and_the_others_exact(
    loaded: LoadedModel, make_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(loaded, make_task(train=160, calibration=20, test=20), tmp_path / "store", Options(ordering=80))
    full, short = (ranked(job, tmp_path, first, monkeypatch) for first in (80, 4))
    assert full.dropped == set()
    assert 0 < len(short.dropped) < len(full.changes)
    for key, changes in short.changes.items():
        assert changes.tolist() == ([0] * 80 if key in short.dropped else full.changes[key].tolist())


def test_calibrate_goes_on_where_it_was_stopped_and_publishes_the_same(
    loaded: LoadedModel, make_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "MAX_REQUESTS", 16)
    monkeypatch.setattr(ranking, "FIRST", 20)
    task, options = make_task(train=100, calibration=60, test=40), Options(ordering=50, directions=("covariance",))
    asked: list[int] = []
    real, add = asking.generations, Journal.add
    monkeypatch.setattr(asking, "generations", lambda *a, **k: asked.append(len(a[1])) or real(*a, **k))
    whole = run(loaded, task, tmp_path / "whole", options)
    once, stops = list(asked), 0
    assert whole is not None
    assert len(once) > 6

    def stopped(self: Journal, name: str, value: Any) -> None:
        add(self, name, value)
        raise KeyboardInterrupt

    asked.clear()
    monkeypatch.setattr(Journal, "add", stopped)
    while True:
        try:
            found = run(loaded, task, tmp_path / "stopped", options)
            break
        except KeyboardInterrupt:
            stops += 1
            assert stops <= len(once)
    assert stops == len(once)
    assert asked == once
    assert found is not None
    assert found["artifact"] == whole["artifact"]
    assert {**found, "seconds": None} == {**whole, "seconds": None}
    assert not list((tmp_path / "stopped" / ".work").rglob("*.draft"))


def test_calibration_says_what_was_dropped(
    loaded: LoadedModel, make_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "FIRST", 4)
    run(loaded, make_task(train=160, calibration=40, test=20), tmp_path / "store", Options(ordering=80))
    [entry] = artifacts.scan([tmp_path / "store"])
    assert entry.artifact is not None
    dropped = [row for row in entry.artifact.calibration["candidates"] if row.get("dropped")]
    assert dropped
    assert all((row["gain"], row["gained"], row["lost"]) == (0.0, 0, 0) for row in dropped)
