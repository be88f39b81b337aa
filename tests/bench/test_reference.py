"""Each mistake of the released code that `--compat reference` names is really there, compared with values worked out by hand."""

from __future__ import annotations

import contextlib
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merasteer.bench.reference import (
    _ask,
    _collect,
    _lasso,
    _some,
    fit_error,
    kept,
    late_position,
    late_score,
    mixed_step,
    reference,
    steering,
    wrong_way,
)
from merasteer.engine import load_model, wrap_model
from merasteer.pipeline import Bars, Options
from merasteer.pipeline.job import Job, prepare

WORDS = ["[UNK]", "yes", "Yes", "no", "No", "?", *(f"w{i}" for i in range(14))]
LAYERS, WIDTH = 3, 16


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A random Llama and 100 rows of noise, 50:25:25."""
    folder = tmp_path_factory.mktemp("reference")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # large enough that activations and answers differ from prompt to prompt
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    model.save_pretrained(folder / "model")
    rng = random.Random(0)
    rows = [{"text": " ".join(rng.sample(WORDS[6:], 6)), "label": rng.choice(["yes", "no"])} for _ in range(100)]
    (folder / "noise.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "noise.toml").write_text(
        'name = "noise"\nlabels = ["yes", "no"]\n[variants]\nyes = ["yes", "Yes"]\nno = ["no", "No"]\n'
        '[prompt]\ntemplate = "{text} ?"\n[data]\npath = "noise.jsonl"\n'
        "[splits]\ntrain = 50\ncalibration = 25\ntest = 25\n",
        encoding="utf-8",
    )
    loaded = load_model(folder / "model", device="cpu")
    return prepare(loaded, folder / "noise.toml", folder / "store", Options(top_k=5))


@pytest.fixture(scope="module")
def exact(job: Job) -> Job:
    """The same job, answered freely: the answer is anywhere in six generated tokens."""
    return replace(job, served=replace(job.served, choose="free", position="exact", max_new_tokens=6))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def hidden_states(job: Job, ids: list[int]) -> torch.Tensor:
    """(L, T, d) behind `post_attention_layernorm`, by an own hook."""
    seen: list[torch.Tensor] = []
    blocks = job.loaded.model.model.layers
    handles = [
        block.post_attention_layernorm.register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
        for block in blocks
    ]
    job.loaded.model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def greedy(job: Job, ids: list[int], n: int) -> list[int]:
    """n tokens, the whole text again for each."""
    text = list(ids)
    for _ in range(n):
        text.append(int(job.loaded.model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(ids) :]


@pytest.mark.parametrize("z", [-3.0, -0.2, 0.0, 1.5])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.6])
def test_scales_are_mixed_so_the_predicted_error_ends_off_the_threshold(z, alpha):
    w = torch.tensor([3.0, 4.0])
    h = z * w / 25.0 + torch.tensor([4.0, -3.0])  # w·h = z
    limit = math.log(alpha / (1 - alpha))
    moved = mixed_step(h, w, alpha)
    if sigmoid(z) <= limit:
        assert torch.equal(moved, h)
        return
    expected = h + ((limit - sigmoid(z)) / 25.0 + 1e-8) * w
    assert torch.allclose(moved, expected, atol=1e-6)
    assert abs(sigmoid(float(w @ moved)) - alpha) > 0.01


def test_up_to_a_half_every_token_moves_and_above_sigma_of_one_none_does():
    generator = torch.Generator().manual_seed(0)
    h, w = torch.randn(1, 50, 8, generator=generator), torch.randn(8, generator=generator)
    assert bool((h @ w < -1).any())  # tokens far below any threshold
    assert bool((mixed_step(h, w, 0.5) != h).any(-1).all())
    assert torch.equal(mixed_step(h, w, 0.74), h)


def test_the_small_constant_stays_where_the_rest_of_the_step_is_nothing():
    """Behind the division it is 1e-8 · w whatever ‖w‖ is: a weight of 1e6 makes it a step of .01."""
    w = torch.tensor([1e6, 0.0])
    moved = mixed_step(torch.tensor([1.0, 2.0]), w, 0.5)
    assert float(moved[0]) == pytest.approx(1.0 + 0.01 - 1e-6, abs=1e-6)
    assert float(moved[1]) == 2.0


def test_a_missing_answer_has_no_error_under_exact_and_is_no_matter_under_last(job, exact):
    logits = torch.randn(9, len(WORDS), generator=torch.Generator().manual_seed(1))
    assert late_position(exact.served, 5, [6, 7, 8, 9]) is None
    assert late_score(logits, None, exact.served, 1) == (-1, 0.0)
    assert late_position(exact.served, 5, [6, 7, 4, 1]) == 7  # the token "No" itself, not the one before it
    assert late_position(job.served, 5, [6]) == 5


@pytest.mark.parametrize("which", ["job", "exact"])
def test_targets_and_activations_are_read_at_the_answer_token_itself(which, request):
    """One late: at index prompt_len under `last`. Worked out from one full forward pass over prompt and answer."""
    given: Job = request.getfixturevalue(which)
    items = given.splits.train[:12]
    error, activations = _collect(given, "reference", items, lambda: None)
    scored = _ask(given, items, lambda: None)
    assert np.array_equal(scored.error, error)
    unmatched = 0
    for i, example in enumerate(items):
        ids = given.loaded.tokenizer.encode(example.prompt)
        answer = greedy(given, ids, 1 if which == "job" else 6)
        labels = [{1: 0, 2: 0, 3: 1, 4: 1}.get(token, -1) for token in answer]
        first = 0 if which == "job" else next((at for at, label in enumerate(labels) if label >= 0), None)
        assert scored.label[i] == (-1 if first is None else labels[first])
        at = -1 if first is None else len(ids) + first
        assert torch.allclose(activations[i], hidden_states(given, [*ids, *answer])[:, at], atol=1e-5)
        if first is None:
            unmatched += 1
            assert (scored.late[i], error[i]) == (-1, 0.0)
            continue
        late = given.loaded.model(torch.tensor([[*ids, *answer]])).logits[0, at]
        scores = torch.stack([late[[1, 2]].max(), late[[3, 4]].max()])
        assert error[i] == pytest.approx(1 - float(scores.softmax(0)[example.label]), abs=1e-5)
        assert scored.late[i] == int(scores.argmax())
    assert (unmatched > 0) == (which == "exact")


def test_the_error_readout_has_no_intercept():
    """One input: without an intercept the Lasso is the mean of x·y, less the penalty, over the mean of x²."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1)) + 1.0
    y = 3.0 - x[:, 0]
    for penalty in (0.5, 0.01, 0.0):
        by_hand = (np.mean(x[:, 0] * y) - penalty) / np.mean(x**2)
        assert by_hand > 0  # an intercept would turn the sign
        assert _lasso(x, y, penalty) == pytest.approx([by_hand], rel=1e-3)
    _, rmse, dummy = fit_error(x, np.full(200, 3.0), seed=0)
    assert dummy == 0.0
    assert rmse > 1.0  # through the origin it misses even a constant


def test_least_squares_stands_in_the_grid_and_the_least_held_out_rmse_wins():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(200, 4)), np.array([1.0, -2.0, 0.0, 0.5])
    exact = fit_error(x, x @ w, seed=0)
    assert exact[0] == pytest.approx(w)
    assert exact[1] < 1e-9
    noisy = fit_error(x[:30].repeat(5, 1), x[:30, 0] + rng.normal(size=30), seed=0)
    assert np.abs(noisy[0]).max() < 1e3
    assert noisy[1] < noisy[2]


def test_a_layer_without_a_weight_has_no_score():
    w, rmse, _ = fit_error(np.zeros((20, 3)), np.ones(20), seed=0)
    assert (w.tolist(), rmse) == ([0.0] * 3, math.inf)


def test_the_contrast_points_at_low_error_so_the_closed_form_walks_to_error():
    """Activations that are the error itself along one axis: a low error gives a high readout, which the step then takes down."""
    error = np.linspace(0, 1, 20)
    x = np.stack([error, np.ones(20)], 1)
    w = wrong_way(x, error, top_k=5)
    assert w == pytest.approx([error[:5].mean() - error[-5:].mean(), 0.0])
    h = torch.tensor([0.2, 1.0])
    assert mixed_step(h, torch.from_numpy(w).float(), 0.1)[0] > h[0]
    assert wrong_way(x[:6], error[:6], top_k=50) == pytest.approx([-error[3], 0.0])  # halves, no overlap


def test_a_tie_counts_as_an_improvement():
    assert kept([(0.1, 0.4), (0.5, 0.5), (0.9, 0.3)], 0.5) == 0.5
    assert kept([(0.1, 0.6), (0.5, 0.5), (0.9, 0.6)], 0.5) == 0.9  # the last of equals
    assert kept([(0.1, 0.4)], 0.5) is None


@pytest.mark.parametrize("hook_point", ["reference", "mlp_input"])
def test_all_positions_and_layers_move_and_the_hooks_are_gone_after_an_error(job, hook_point):
    weight = torch.randn(LAYERS, WIDTH, generator=torch.Generator().manual_seed(2))
    weight[1] = 0.0
    ids = job.loaded.tokenizer.encode(job.splits.test[0].prompt)
    before = hidden_states(job, ids)
    with contextlib.suppress(KeyError), steering(job.loaded, hook_point, weight, 0.2):
        moved = hidden_states(job, ids)  # its hooks come behind those of `steering` where both are on one module
        raise KeyError
    if hook_point == "reference":
        by_hand = torch.stack([mixed_step(h, weight[0], 0.2) for h in before[0]])
        assert torch.allclose(moved[0], by_hand, atol=1e-5)
        assert bool((moved[0] != before[0]).any(-1).all())
    assert not torch.allclose(moved[2], before[2])
    assert torch.equal(hidden_states(job, ids), before)
    with steering(job.loaded, hook_point, weight, None):
        assert torch.equal(hidden_states(job, ids), before)


@pytest.mark.parametrize("readout", ["error", "contrastive"])
def test_the_outcome_follows_from_its_parts(job, readout):
    found = reference(job, readout, Bars(), train_items=30, calibration_items=10)
    assert found.hook_point == "reference"
    assert [alpha for alpha, _ in found.curve] == pytest.approx(np.linspace(0.001, 0.99, 10))
    assert found.alpha == kept(found.curve, found.unsteered_calibration)
    idle = [accuracy for alpha, accuracy in found.curve if alpha > sigmoid(1.0)]
    assert idle == [found.unsteered_calibration] * 3  # nothing moves: these tie, so calibration always keeps something
    assert found.alpha is not None
    assert found.layers == tuple(range(LAYERS))
    assert [score.layer for score in found.probes] == ([0, 1, 2] if readout == "error" else [])
    assert len(found.steered.label) == len(found.unsteered.label) == 25
    first = [greedy(job, job.loaded.tokenizer.encode(example.prompt), 1)[0] for example in job.splits.test]
    assert found.unsteered.label.tolist() == [{1: 0, 2: 0, 3: 1, 4: 1}.get(token, -1) for token in first]


def test_subsamples_are_drawn_over_the_whole_split(job):
    drawn = _some(job, job.splits.train, 20)
    places = [job.splits.train.index(example) for example in drawn]
    assert places == sorted(set(places))
    assert len(places) == 20
    assert places != list(range(20))
    assert _some(job, job.splits.train, None) == list(job.splits.train)


def test_a_family_without_the_released_hook_point_is_steered_where_the_mlp_reads(job):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=None
    )
    loaded = wrap_model(GPT2LMHeadModel(config), job.loaded.tokenizer, "tiny-gpt2")
    found = reference(replace(job, loaded=loaded), "contrastive", Bars(), train_items=10, calibration_items=4)
    assert found.hook_point == "mlp_input"
