"""The trivial fix in the batch: a bias on the variants' logits where the answer is chosen, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from merasteer.engine import Engine, EngineConfig
from merasteer.errors import InvalidInput
from merasteer.types import GenerationRequest, Policy, Sampling

VARIANTS = ((1, 2), (3, 4, 5))


def plain_biased(model, prompt, new, bias, position):
    """Tokens of greedy decoding with the bias added by hand; `position` is the task's answer position."""
    sequence, answered = list(prompt), False
    for step in range(new):
        with torch.no_grad():
            logits = model(torch.tensor([sequence])).logits[0, -1].clone()
        if (position == "last" and step == 0) or (position == "exact" and not answered):
            for value, ids in zip(bias, VARIANTS, strict=True):
                for token in ids:
                    logits[token] += value
        sequence.append(int(logits.argmax()))
        answered |= any(sequence[-1] in ids for ids in VARIANTS)
    return sequence[len(prompt) :]


@pytest.mark.parametrize("position", ["last", "exact"])
def test_tokens_are_those_of_the_bias_added_by_hand(llama, prompts, position):
    biases = [(0.0, 0.0), (6.0, -1.0), (-2.0, 9.0), (0.0, 30.0), (12.0, 12.0)]
    asked = [
        GenerationRequest(prompt, 5, variants=VARIANTS, position=position, label_bias=biases[i % 5])
        for i, prompt in enumerate(prompts)
    ]
    with Engine(llama, EngineConfig()) as engine:
        answers = [future.result(60) for future in [engine.submit(request) for request in asked]]
    changed = 0
    for request, answer in zip(asked, answers, strict=True):
        assert list(answer.tokens) == plain_biased(llama.model, request.prompt, 5, request.label_bias, position)
        if position == "last":
            unbiased = plain_biased(llama.model, request.prompt, 1, (0.0, 0.0), position)
            assert answer.answer.changed == (answer.tokens[0] != unbiased[0])
            changed += answer.answer.changed
    assert position == "exact" or changed >= 5


def test_probabilities_are_behind_the_bias_and_log_probabilities_before_it(llama, prompts):
    with Engine(llama, EngineConfig()) as engine:
        plain, biased = (
            engine.submit(GenerationRequest(prompts[0], 1, variants=VARIANTS, label_bias=bias, logprobs=True)).result(
                30
            )
            for bias in (None, (0.0, 30.0))
        )
    odds = [a.answer.probabilities[1] / a.answer.probabilities[0] for a in (plain, biased)]
    assert odds[1] / odds[0] == pytest.approx(torch.tensor(30.0, dtype=torch.float64).exp().item(), rel=1e-3)
    assert biased.answer.label == 1
    with torch.no_grad():
        raw = llama.model(torch.tensor([prompts[0]])).logits[0, -1].log_softmax(-1)
    assert biased.logprobs[0] == pytest.approx(raw[biased.tokens[0]].item(), abs=1e-3)


def test_with_a_step_and_with_sampling(llama, prompts, make_vectors, plain):
    """mera+bias: the step moves the activation, the bias the logits behind it; sampled draws keep their noise."""
    v = make_vectors(5, "residual")
    with Engine(llama, EngineConfig()) as engine:
        engine.register("v", v)
        both = engine.submit(
            GenerationRequest(prompts[2], 3, Policy("v", 0.3), variants=VARIANTS, label_bias=(0.0, 50.0))
        ).result(30)
        alone = engine.submit(GenerationRequest(prompts[2], 3, Policy("v", 0.3), variants=VARIANTS)).result(30)
        hot = Sampling(temperature=1.0, seed=3)
        drawn = [
            engine.submit(GenerationRequest(prompts[2], 1, variants=VARIANTS, label_bias=bias, sampling=hot)).result(30)
            for bias in (None, (0.0, 0.0), (60.0, 0.0))
        ]
    assert both.answer.label == 1
    assert both.predicted_error.before == pytest.approx(alone.predicted_error.before, abs=1e-5)
    assert both.predicted_error.after == pytest.approx(alone.predicted_error.after, abs=1e-5)
    assert drawn[0].tokens == drawn[1].tokens
    assert not drawn[1].answer.changed
    assert drawn[2].answer.label == 0


def test_a_bias_of_the_wrong_length_is_refused(llama):
    with Engine(llama, EngineConfig()) as engine:
        for bias, variants in (((1.0,), VARIANTS), ((1.0, 2.0), None)):
            with pytest.raises(InvalidInput, match="label_bias"):
                engine.submit(GenerationRequest((1, 2), 1, variants=variants, label_bias=bias))


def test_positions_beyond_the_prompt_are_refused(llama, make_vectors):
    with Engine(llama, EngineConfig()) as engine:
        engine.register("v", make_vectors(5, "residual"))
        with pytest.raises(InvalidInput, match="positions: one lies beyond the prompt's 2 tokens"):
            engine.submit(GenerationRequest((1, 2), 1, Policy("v", 0.3, positions=(0, 2))))
    for wrong in ((), (1, 1), (-1,)):
        with pytest.raises(InvalidInput, match="positions: give one or more"):
            Policy("v", 0.3, positions=wrong)
