"""Gradients of the error at the answer position, held against the whole pass differentiated, and a closed form on a linear model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from merasteer.engine import answer_gradients
from merasteer.engine.layers import decoder_layers, family_of, site
from merasteer.errors import NonFinite
from merasteer.types import LabelChoice

# Labels of one token, and labels that begin alike, one of them the beginning of another.
SINGLE = LabelChoice((((5,), (6,)), ((7,),), ((8,),)))
FORKED = LabelChoice((((5, 6), (5,)), ((7,),), ((5, 9),)), end=3)
PROMPTS = [tuple(range(10 + i, 10 + i + n)) for i, n in enumerate((30, 30, 1, 12))]
LABELS = [0, 1, 2, 0]


def plainly(loaded: Any, choice: LabelChoice, prompt: tuple[int, ...], label: int, point: str, layer: int) -> Any:
    """The gradient with respect to a vector added at one place, the whole sequence in every pass."""
    where, block = site(loaded.model, point), decoder_layers(loaded.model)[layer]  # type: ignore[arg-type]
    module = block.get_submodule(where.module) if where.module else block
    added, last = torch.zeros(loaded.width, requires_grad=True), len(prompt) - 1

    def moved(hidden: torch.Tensor) -> torch.Tensor:
        return hidden + torch.nn.functional.one_hot(torch.tensor(last), hidden.shape[1])[None, :, None] * added

    hook: Any = (
        module.register_forward_pre_hook(lambda _m, inputs: (moved(inputs[0]), *inputs[1:]))
        if where.side == "input"
        else module.register_forward_hook(
            lambda _m, _i, out: (moved(out[0]), *out[1:]) if isinstance(out, tuple) else moved(out)
        )
    )
    spellings = [tokens for of_label in choice.variants for tokens in of_label]

    def score(tokens: tuple[int, ...]) -> torch.Tensor:
        total = torch.zeros(())
        for i in range(len(tokens) + 1):
            path, step = tokens[:i], tokens[i] if i < len(tokens) else choice.end
            permitted = sorted({s[i] if len(s) > i else choice.end for s in spellings if s[:i] == path})
            if len(permitted) > 1:
                logits = loaded.model(torch.tensor([[*prompt, *path]])).logits[0, -1]
                total = total + logits[step] - logits[permitted].logsumexp(0)
        return total

    try:
        scores = torch.stack(
            [torch.stack([score(tokens) for tokens in of_label]).max() for of_label in choice.variants]
        )
        [gradient] = torch.autograd.grad(-scores.log_softmax(-1)[label], added)
    finally:
        hook.remove()
    return gradient


@pytest.mark.parametrize("choice", [SINGLE, FORKED], ids=["single", "forked"])
def test_they_are_those_of_the_whole_pass(family, choice: LabelChoice) -> None:
    name, loaded = family
    points = list(family_of(loaded.model).sites)
    found = answer_gradients(loaded, choice, PROMPTS, LABELS, points)
    for i, (prompt, label) in enumerate(zip(PROMPTS, LABELS, strict=True)):
        point, layer = points[i % len(points)], (i * 3) % 4
        expected = plainly(loaded, choice, prompt, label, point, layer)
        scale = float(expected.abs().max()) or 1.0
        assert float((found[point][i, layer] - expected).abs().max()) < 2e-5 * scale + 1e-7, (name, point, layer)
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in loaded.model.parameters())


def test_on_a_linear_model_they_are_the_closed_form(make_tiny) -> None:
    """Blocks that add nothing and no last norm: logits are W·h, and ∇(−log q_y) = Wᵀ(q − e_y) over the labels' tokens."""
    loaded = make_tiny("gpt2")
    with torch.no_grad():
        for block in decoder_layers(loaded.model):
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
    loaded.model.transformer.ln_f = torch.nn.Identity()
    choice = LabelChoice((((5,),), ((7,),), ((8,),)))
    found = answer_gradients(loaded, choice, PROMPTS, LABELS, ("residual",))["residual"]
    rows = loaded.model.lm_head.weight[[5, 7, 8]]
    for i, (prompt, label) in enumerate(zip(PROMPTS, LABELS, strict=True)):
        q = loaded.model(torch.tensor([prompt])).logits[0, -1, [5, 7, 8]].softmax(-1)
        expected = rows.T @ (q - torch.nn.functional.one_hot(torch.tensor(label), 3))
        for layer in range(4):
            torch.testing.assert_close(found[i, layer], expected, atol=1e-5, rtol=1e-5)


def test_in_bfloat16_they_point_the_same_way(make_tiny) -> None:
    loaded = make_tiny("llama")
    full = answer_gradients(loaded, SINGLE, PROMPTS, LABELS, ("residual",))["residual"]
    loaded.model.to(torch.bfloat16)
    short = answer_gradients(loaded, SINGLE, PROMPTS, LABELS, ("residual",))["residual"]
    assert short.dtype == torch.float32
    assert float(torch.cosine_similarity(full.flatten(1), short.flatten(1)).min()) > 0.95


def test_one_that_is_not_finite_is_named(make_tiny) -> None:
    loaded = make_tiny("llama")
    with torch.no_grad():
        loaded.model.model.embed_tokens.weight[41] = float("nan")  # of the second prompt alone
    with pytest.raises(NonFinite, match="prompt 2: its gradient is not finite"):
        answer_gradients(loaded, SINGLE, [PROMPTS[3], (*PROMPTS[3], 41)], [0, 1], ("residual",))
