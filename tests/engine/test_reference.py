"""The engine against the slow plain implementation: z and shift to 1e-4, greedy tokens and moved cells exactly."""

from __future__ import annotations

import math

import pytest
import torch

from merasteer.engine import Engine, EngineConfig
from merasteer.types import GenerationRequest, Policy

CASES = [
    Policy("v", 0.3), Policy("v", 0.3, positions="all"), Policy("v", 0.7), Policy("v", 0.25, layers=(2,)),
    Policy("v", 0.25, layers=(0, 2), positions="all"), Policy("v", strength=0.7), Policy("v", strength=0.4, positions="all"), Policy("v"),
    Policy("v", 0.3, positions="last"), Policy("v", 0.25, positions=(0, 3)), Policy("v", 0.25, positions=(4, 1), layers=(0, 3)),
]  # fmt: skip


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize("hook_point", ["residual", "mlp_input", "reference"])
def test_engine_equals_plain(family, hook_point, request, prompts, make_vectors, plain):
    loaded = request.getfixturevalue(family)
    v = make_vectors(7, hook_point, idle=(1,))
    with Engine(loaded, EngineConfig()) as engine:
        engine.register("v", v)
        asked = [
            GenerationRequest(prompts[i % 5], 5, policy, variants=((1, 2), (3,)), trace=True)
            for i, policy in enumerate(CASES)
        ]
        answers = [future.result(60) for future in [engine.submit(one) for one in asked]]
    moved_somewhere = 0
    for one, answer in zip(asked, answers, strict=True):
        truth = plain(loaded.model, one.prompt, 5, v, one.policy)
        assert list(answer.tokens) == truth.tokens
        acts = one.policy.alpha is not None or one.policy.strength
        if acts:
            assert answer.steering.steered_cells == len(truth.moved)
            assert answer.steering.steered_tokens == len({position for position, _ in truth.moved})
            named = {"generation": 5, "all": len(one.prompt) + 4, "last": 1}
            positions = (
                len(one.policy.positions) if isinstance(one.policy.positions, tuple) else named[one.policy.positions]
            )
            layers = 3 if one.policy.layers is None else len(one.policy.layers)
            assert (answer.steering.tokens, answer.steering.cells) == (positions, positions * layers)
        if truth.shifts:
            moved_somewhere += 1
            assert answer.steering.mean_shift == pytest.approx(sum(truth.shifts) / len(truth.shifts), abs=1e-4)
            assert answer.steering.max_shift == pytest.approx(max(truth.shifts), abs=1e-4)
        before, after = truth.z[0][v.report_layer]
        assert answer.predicted_error.before == pytest.approx(sigmoid(before), abs=1e-4)
        assert answer.predicted_error.after == pytest.approx(sigmoid(after), abs=1e-4)
        reported = one.policy.positions in ("generation", "all", "last") and v.report_layer in (
            one.policy.layers or range(4)
        )
        if one.policy.alpha is not None and reported:
            assert answer.predicted_error.after <= one.policy.alpha + 1e-5
        for step, trace in zip(truth.z, answer.trace, strict=True):
            for layer, (z, z_after) in enumerate(step):
                assert trace.before[layer] == pytest.approx(sigmoid(z), abs=1e-4)
                assert trace.after[layer] == pytest.approx(sigmoid(z_after), abs=1e-4)
        classes = torch.stack([truth.logits[[1, 2]].max(), truth.logits[3]]).softmax(-1)
        assert answer.answer.probabilities == pytest.approx(classes.tolist(), abs=1e-4)
    assert moved_somewhere >= 5


def test_captured_activations_are_those_before_the_step(llama, prompts, make_vectors):
    """Captured at the answer position, at every hook point, in the same pass as everything else."""
    kept = {}

    def keep(index):
        return llama.model.model.layers[index].register_forward_hook(
            lambda _m, _i, out: kept.__setitem__(index, out[0, -1].clone())
        )

    with Engine(llama, EngineConfig(capture=("residual", "mlp_input"))) as engine:
        answers = [
            future.result(60) for future in [engine.submit(GenerationRequest(prompt, 2)) for prompt in prompts[:4]]
        ]
    for prompt, answer in zip(prompts[:4], answers, strict=True):
        handles = [keep(index) for index in range(4)]
        with torch.no_grad():
            llama.model(torch.tensor([prompt]))
        for handle in handles:
            handle.remove()
        assert torch.allclose(answer.activations["residual"], torch.stack([kept[i] for i in range(4)]), atol=1e-4)
        assert answer.activations["mlp_input"].shape == (4, 48)


def test_exact_answer_position_is_where_the_first_variant_is_chosen(llama, prompts, make_vectors, plain):
    """`exact`: the reads come from the position before the first generated variant; a missing answer falls back to the last prompt one."""
    v = make_vectors(7, "residual")
    policy = Policy("v", 0.3)
    prompt, truth = next(
        (prompt, truth) for prompt in prompts
        if (truth := plain(llama.model, prompt, 6, v, policy)).tokens[2] not in truth.tokens[:2]
    )  # fmt: skip
    third = truth.tokens[2]
    with Engine(llama, EngineConfig()) as engine:
        engine.register("v", v)
        found = engine.submit(GenerationRequest(prompt, 6, policy, variants=((third,), (0,)), position="exact")).result(
            60
        )
        absent = next(token for token in range(300) if token not in truth.tokens)
        missing = engine.submit(
            GenerationRequest(prompt, 6, policy, variants=((absent,), (absent + 1,)), position="exact")
        ).result(60)
    assert found.answer.label == 0
    assert found.predicted_error.position == "answer"
    assert found.predicted_error.before == pytest.approx(sigmoid(truth.z[2][v.report_layer][0]), abs=1e-4)
    assert missing.answer.label is None
    assert missing.predicted_error.position == "last_prompt"
    assert missing.predicted_error.before == pytest.approx(sigmoid(truth.z[0][v.report_layer][0]), abs=1e-4)


def test_idle_layers_are_never_moved(llama, prompts, make_vectors):
    everything_idle = make_vectors(7, "residual", idle=(0, 1, 3))  # layer 2 reports
    with Engine(llama, EngineConfig()) as engine:
        engine.register("v", everything_idle)
        engine.register("busy", make_vectors(8, "residual"))  # keeps the hooks of all layers at work
        asked = [
            GenerationRequest(prompt, 4, Policy(key, 0.2), trace=True)
            for prompt in prompts[:6]
            for key in ("v", "busy")
        ]
        futures = [engine.submit(request) for request in asked]
        for answer in [future.result(60) for future in futures][::2]:
            assert answer.steering.cells == answer.steering.tokens
            for trace in answer.trace:
                assert [trace.shift[layer] for layer in (0, 1, 3)] == [0.0, 0.0, 0.0]
