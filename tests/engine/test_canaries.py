"""Canaries: what a change of the loaded model does to their numbers, each change alone, and what is no change."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from merasteer.engine import Engine, EngineConfig, LoadedModel
from merasteer.engine.canaries import LEAST, Canaries, Canary, asked, read
from merasteer.types import Correction, GenerationRequest, ServedTask

CONFIG = EngineConfig(max_requests=16, cache_tokens=2048, page_size=8)
CORRECTION = Correction("mera+bias", "a", alpha=0.3, bias=(0.2, -0.1, 0.0))
TASK = ServedTask(
    "colours", ("red", "green", "blue"), (((7,), (8,)), ((9,),), ((11,), (12, 13))), "{text}", "labels", "last", 2, end=14
)  # fmt: skip
PROMPTS = [tuple((17 * i + 5 * j) % 290 + 1 for j in range(6 + 4 * i)) for i in range(8)]


def found_by(engine: Engine, task: ServedTask = TASK, correction: Correction = CORRECTION) -> list[Canary]:
    return read(correction, PROMPTS, [one.result(60) for one in engine.submit_all(asked(task, correction, PROMPTS))])


def alone(engine: Engine) -> list[Canary]:
    return [
        canary
        for tokens in PROMPTS
        for canary in read(
            CORRECTION, [tokens], [engine.submit(one).result(60) for one in asked(TASK, CORRECTION, [tokens])]
        )
    ]  # fmt: skip


def measured(loaded: LoadedModel, vectors: Any) -> Canaries:
    with Engine(loaded, CONFIG) as engine:
        engine.register("a", vectors)
        return Canaries.of(alone(engine), found_by(engine), loaded.dtype)


def changed(loaded: LoadedModel, change: Callable[[Any], object]) -> LoadedModel:
    """The same model, changed in memory: the digests that were taken of its files say nothing of it."""
    other = copy.deepcopy(loaded.model)
    with torch.no_grad():
        change(other)
    return replace(loaded, model=other)


# With scores of a size that attention's scale and cap matter, as trained models have them.
SHARP: dict[str, dict[str, Any]] = {
    "llama": {}, "gemma2": {"query_pre_attn_scalar": 1, "attn_logit_softcapping": 2.0}, "granite": {"attention_multiplier": 3.0}
}  # fmt: skip


@pytest.fixture(scope="module", params=SHARP)
def world(request: pytest.FixtureRequest, make_tiny: Any, make_vectors: Any) -> tuple[LoadedModel, Any, Canaries]:
    """A model, its vectors, and its canaries as a certified run leaves them behind."""
    loaded, vectors = make_tiny(request.param, **SHARP[request.param]), make_vectors(3, "residual")
    return loaded, vectors, measured(loaded, vectors)


def scaled(model: Any) -> None:
    for parameter in model.model.layers[2].parameters():
        parameter.mul_(1.02)


def scaled_attention(model: Any) -> None:
    """Queries alone: a norm behind the values would take their scale away."""
    model.model.layers[0].self_attn.q_proj.weight.mul_(1.02)


def capped(model: Any) -> None:
    """Gemma-2 caps attention's scores; the others scale them."""
    for layer in model.model.layers:
        if getattr(layer.self_attn, "attn_logit_softcapping", None):
            layer.self_attn.attn_logit_softcapping *= 0.8
        else:
            layer.self_attn.scaling *= 1.1


def biased(model: Any) -> None:
    model.model.norm.register_forward_hook(lambda _module, _inputs, output: output + 0.02)


def epsilon(model: Any) -> None:
    for layer in model.model.layers:
        layer.input_layernorm.variance_epsilon = layer.input_layernorm.eps = 0.05


@pytest.mark.parametrize("change", [scaled, scaled_attention, capped, biased, epsilon], ids=lambda one: one.__name__)
def test_each_change_is_caught_alone(world: Any, change: Callable[[Any], None]) -> None:
    loaded, vectors, canaries = world
    with Engine(changed(loaded, change), CONFIG) as engine:
        engine.register("a", vectors)
        assert (canaries.off(found_by(engine)) or "").startswith("canary ")


def test_swapped_label_tokens_are_caught(world: Any) -> None:
    loaded, vectors, canaries = world
    first, second, third = TASK.variants
    for swapped in ((second, first, third), (first, third, second), (((8,), (7,)), third, second)):
        with Engine(loaded, CONFIG) as engine:
            engine.register("a", vectors)
            assert canaries.off(found_by(engine, replace(TASK, variants=swapped))) is not None


def test_another_step_or_bias_is_caught(world: Any, make_vectors: Any) -> None:
    loaded, vectors, canaries = world
    with Engine(loaded, CONFIG) as engine:
        engine.register("a", replace(vectors, step=-vectors.step))
        assert canaries.off(found_by(engine)) is not None
    with Engine(loaded, CONFIG) as engine:
        engine.register("a", make_vectors(4, "residual"))
        assert canaries.off(found_by(engine)) is not None
    with Engine(loaded, CONFIG) as engine:
        engine.register("a", vectors)
        assert canaries.off(found_by(engine, correction=replace(CORRECTION, bias=(0.0, 0.0, 0.0)))) is not None
        assert canaries.off(found_by(engine, correction=replace(CORRECTION, alpha=0.01))) is not None


def test_what_is_no_change_passes(world: Any) -> None:
    """Another number of threads, other company, other pages and other sizes of the batch."""
    loaded, vectors, canaries = world
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with Engine(loaded, replace(CONFIG, max_batch_tokens=32, page_size=16)) as engine:
            engine.register("a", vectors)
            assert canaries.off(found_by(engine)) is None
    finally:
        torch.set_num_threads(threads)
    with Engine(loaded, CONFIG) as engine:
        engine.register("a", vectors)
        company = [engine.submit(GenerationRequest(tuple(range(1, 40 + i)), 40)) for i in range(6)]
        assert canaries.off(found_by(engine)) is None
        assert canaries.off(alone(engine)) is None
        for one in company:
            one.cancel()


def test_the_numbers_are_those_of_the_request(world: Any) -> None:
    """z of every layer on the unsteered pass, log q before and behind the correction, the label that is served."""
    loaded, vectors, canaries = world
    with Engine(loaded, CONFIG) as engine:
        engine.register("a", vectors)
        for canary in canaries.prompts:
            plain = engine.submit(Correction().request(TASK, canary.tokens)).result(60)
            served = engine.submit(CORRECTION.request(TASK, canary.tokens)).result(60)
            assert canary.label == served.answer.label
            shares = [math.exp(value) for value in canary.log_q]
            assert shares == pytest.approx(plain.answer.probabilities, abs=1e-5)
            assert [math.exp(value) for value in canary.corrected] == pytest.approx(
                served.answer.probabilities, abs=1e-5
            )
            assert len(canary.z) == loaded.layers
    assert any(abs(a - b) > 0.1 for one in canaries.prompts for a, b in zip(one.log_q, one.corrected, strict=True))


def test_they_survive_being_written(world: Any) -> None:
    canaries = world[2]
    assert Canaries.from_json(json.loads(json.dumps(canaries.to_json()))) == canaries


# ------------------------------------------------------------------------------------------------ the arithmetic


def canary(z: float = 1.0, log_q: tuple[float, ...] = (-0.1, -2.4), label: int | None = 0) -> Canary:
    return Canary((1, 2), (z,), log_q, log_q, label)


@pytest.mark.parametrize(
    ("apart", "dtype", "tolerance"),
    [(0.0, "float32", 1e-3), (0.01, "float32", 0.1), (0.0, "bfloat16", 5e-2), (0.001, "float16", 5e-2)],
)
def test_the_tolerance_is_ten_times_the_spread_and_no_less_than_the_dtypes(
    apart: float, dtype: str, tolerance: float
) -> None:
    found = Canaries.of([canary(), canary()], [canary(), canary(1.0 + apart)], dtype)
    assert found.tolerance == pytest.approx(tolerance)
    assert found.tolerance >= LEAST[dtype]


def test_what_is_off_is_told_with_its_number() -> None:
    canaries = Canaries.of([canary(), canary()], [canary(), canary()], "float32")
    assert canaries.off([canary(), canary(1.0005)]) is None
    assert canaries.off([canary(), canary(1.25)]) == "canary 2 is off by 0.25 (tolerance 0.001)"
    assert "is off by inf" in (canaries.off([canary(math.nan), canary()]) or "")
    assert "is off by inf" in (canaries.off([canary(log_q=(-0.1, -2.4, -9.0)), canary()]) or "")


def test_another_label_is_off_unless_it_was_a_near_thing() -> None:
    clear, near = canary(), canary(log_q=(-0.6930, -0.6933))
    canaries = Canaries.of([clear, near], [clear, near], "float32")
    assert canaries.off([clear, replace(near, label=1)]) is None
    assert canaries.off([replace(clear, label=1), near]) == "canary 1 is answered with another label"
    assert canaries.off([replace(clear, label=None), near]) == "canary 1 is answered with another label"


def test_a_prompt_at_a_gate_may_fall_on_its_other_side() -> None:
    """A last bit decides there, and a step of given length comes all at once: neither a spread, nor another model."""
    near, moved = replace(canary(), gate=1e-5), replace(canary(), corrected=(-3.0, -0.05), label=1)
    canaries = Canaries.of([near], [replace(moved, gate=1e-5)], "float32")
    assert canaries.tolerance == LEAST["float32"]
    assert canaries.off([replace(moved, gate=1e-5)]) is None
    assert canaries.off([replace(canary(1.25), gate=1e-5)]) == "canary 1 is off by 0.25 (tolerance 0.001)"
    assert "is off by 2.9" in (canaries.off([replace(moved, gate=0.1)]) or "")


@pytest.mark.parametrize(("law", "strength"), [("gated", 0.5), ("proportional", 0.8), ("label_probe", 0.0)])
def test_what_acts_behind_a_gate_is_watched_and_its_gate_is_known(
    make_tiny: Any, make_acting: Any, law: str, strength: float
) -> None:
    """What is no change passes, another step or readout is caught, and a label need not be the likeliest."""
    loaded = make_tiny("llama")
    labels = {"labels": 3} if law == "label_probe" else {}
    vectors = make_acting(3, "residual", law, layers=(1,), **labels)
    other = replace(vectors, step=-vectors.step)
    if vectors.classes is not None:
        other = replace(vectors, classes=replace(vectors.classes, weight=-vectors.classes.weight))
    own = Correction("label_probe" if law == "label_probe" else "mera", "a", 0.3, strength)
    task = replace(TASK, variants=(((7,), (8,)), ((9,),), ((11,), (12,))))
    with Engine(loaded, CONFIG) as engine:
        engine.register("a", vectors)
        found = found_by(engine, task, own)
        canaries = Canaries.of(found, found_by(engine, task, own), loaded.dtype)
        assert canaries.tolerance == LEAST["float32"]
        assert canaries.off(found_by(engine, task, own)) is None
        z = [one.z[1] for one in found]
        assert [one.gate for one in found] == pytest.approx([abs(at - math.log(0.3 / 0.7)) for at in z], abs=1e-3)
        at_the_gate = replace(own, alpha=1 / (1 + math.exp(-z[0])))
        assert found_by(engine, task, at_the_gate)[0].gate < LEAST["float32"]
        likeliest = [max(range(3), key=one.corrected.__getitem__) for one in found]
        assert ([one.label for one in found] != likeliest) == (law == "label_probe")
        engine.unregister("a")
        engine.register("a", other)
        assert canaries.off(found_by(engine, task, own)) is not None
