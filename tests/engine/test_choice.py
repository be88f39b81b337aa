"""The answer as a choice among labels, in the batch: held against scoring each spelling by forward passes of its own."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from merasteer.engine import Engine, EngineConfig
from merasteer.engine.choice import points
from merasteer.engine.sampling import gumbel
from merasteer.errors import InvalidInput, PromptTooLong
from merasteer.types import GenerationRequest, LabelChoice, Policy, Sampling

END, DRAWS = 299, 300
# Spellings of one to six tokens; they share first tokens, and (7, 8) and (9,) are beginnings of others.
SHARED = LabelChoice((((5,), (6,)), ((7, 8),), ((7, 8, 10), (9, 11)), ((9,),), ((7, 12, 13, 14, 15, 16),)), END)
SINGLE = LabelChoice((((5,), (6,)), ((7,),), ((8,), (9,), (10,))))
FUNNEL = LabelChoice((((3, 5), (3, 6)), ((3, 7),)))  # one first token for all
CHOICES = (SHARED, SINGLE, FUNNEL)


def steered_logits(model, prompt, path, plain, vectors, policy):
    """Logits behind prompt + path, the policy acting as it does on an answer whose tokens are the path."""
    sequence = (*prompt, *path)
    if policy is None:
        with torch.no_grad():
            return model(torch.tensor([sequence])).logits[0, -1]
    last = len(prompt) - 1
    where = {"generation": range(last, len(sequence)), "all": range(len(sequence)), "last": [last]}
    listed = policy.positions if isinstance(policy.positions, tuple) else tuple(where[policy.positions])
    return plain(model, sequence, 1, vectors, replace(policy, positions=listed)).logits


def plain_choice(model, request, plain, vectors=None):
    """q and the best spelling of each label, one forward pass for each branching point: design-2 section 12 as it is written."""
    choice = request.choice
    spellings = [s for of_label in choice.variants for s in of_label]
    logits: dict[tuple[int, ...], torch.Tensor] = {}

    def score(tokens):
        total = 0.0
        for i in range(len(tokens) + 1):
            path, step = tokens[:i], tokens[i] if i < len(tokens) else choice.end
            permitted = {s[i] if len(s) > i else choice.end for s in spellings if s[:i] == path}
            if len(permitted) < 2:
                continue
            if path not in logits:
                logits[path] = steered_logits(model, request.prompt, path, plain, vectors, request.policy)
            total += float(logits[path][step] - torch.logsumexp(logits[path][sorted(permitted)], 0))
        return total

    scores = [[score(tokens) for tokens in of_label] for of_label in choice.variants]
    best = [of_label[row.index(max(row))] for of_label, row in zip(choice.variants, scores, strict=True)]
    bias = request.label_bias or (0.0,) * len(best)
    return torch.tensor([max(row) + b for row, b in zip(scores, bias, strict=True)]).softmax(-1), best


def check(found, request, model, plain, vectors=None):
    q, best = plain_choice(model, request, plain, vectors)
    assert math.isclose(sum(found.answer.probabilities), 1.0, abs_tol=1e-6)
    assert torch.tensor(found.answer.probabilities) == pytest.approx(q, abs=1e-4)
    assert found.answer.label == max(range(len(q)), key=found.answer.probabilities.__getitem__)
    if request.max_new_tokens is None:
        assert found.tokens == best[found.answer.label]
        assert found.finish_reason == "length"


def answered(engine: Engine, requests):
    return [future.result(120) for future in engine.submit_all(requests)]


def test_labels_that_share_tokens_are_scored_as_by_passes_of_their_own(family, prompts, make_vectors, plain):
    """Every family: batch = alone = plain, with and without steps, evicted, chunked and with shared prompts."""
    _, loaded = family
    v = make_vectors(3, "residual")
    policies = (None, Policy("v", 0.3), Policy("v", 0.4, positions="all"), Policy("v", 0.3, positions="last"))
    asked = [
        GenerationRequest(
            prompt,
            choice=CHOICES[i % 3],
            policy=policies[i % 4],
            label_bias=tuple(0.5 * j for j in range(len(CHOICES[i % 3].variants))) if i % 5 == 0 else None,
        )
        for i, prompt in enumerate(prompts[:12])
    ]
    small = EngineConfig(max_batch_tokens=32, max_requests=16, cache_tokens=256, page_size=8)
    with Engine(loaded, small) as engine:
        engine.register("v", v)
        together = answered(engine, asked)
        alone = [answered(engine, [request])[0] for request in asked[:4]]
    for request, found in zip(asked, together, strict=True):
        check(found, request, loaded.model, plain, v)
    for one, other in zip(alone, together, strict=False):
        assert one.tokens == other.tokens
        assert one.answer.probabilities == pytest.approx(other.answer.probabilities, abs=1e-4)


def test_a_policy_acts_as_far_as_the_label_goes(llama, prompts, make_vectors, plain):
    """An explicit budget goes on freely and unsteered; a smaller one cuts the text, never the decision."""
    v = make_vectors(3, "residual")
    ask = GenerationRequest(prompts[3], choice=SHARED, policy=Policy("v", 0.01), logprobs=True)
    with Engine(llama, EngineConfig()) as engine:
        engine.register("v", v)
        label, longer, cut, everywhere = answered(
            engine,
            [
                ask,
                replace(ask, max_new_tokens=20),
                replace(ask, max_new_tokens=1),
                replace(ask, max_new_tokens=20, policy=Policy("v", 0.01, positions="all")),
            ],
        )
    tokens = len(label.tokens)
    assert label.steering.tokens == longer.steering.tokens == tokens
    assert label.steering.steered_tokens == tokens  # so low an alpha moves each
    assert (cut.tokens, cut.steering.tokens, cut.answer) == (label.tokens[:1], 1, label.answer)
    assert longer.tokens[:tokens] == label.tokens
    assert len(longer.tokens) == 20
    assert everywhere.steering.tokens == len(prompts[3]) + len(engine_label(everywhere)) - 1
    # What follows: the model over a prompt and a label that were steered, itself left alone.
    listed = tuple(range(len(prompts[3]) - 1, len(prompts[3]) - 1 + tokens))
    for i in range(tokens, 20):
        at = Policy("v", 0.01, positions=listed)
        assert plain(llama.model, (*prompts[3], *longer.tokens[:i]), 1, v, at).tokens == [longer.tokens[i]]


def test_a_free_answers_policy_acts_while_its_first_tokens_are_chosen(llama, prompts, make_vectors, plain):
    """As many as its task may have: the same as a policy on the positions that choose these, whatever else is generated."""
    v, last = make_vectors(3, "residual"), len(prompts[3]) - 1
    ask = GenerationRequest(prompts[3], 9, Policy("v", 0.01), acts=3)
    with Engine(llama, EngineConfig()) as engine:
        engine.register("v", v)
        found, short, everywhere = answered(
            engine, [ask, replace(ask, max_new_tokens=2), replace(ask, policy=Policy("v", 0.01, positions="all"))]
        )
    for answer, acting in ((found, range(last, last + 3)), (everywhere, range(last + 3))):
        at = Policy("v", 0.01, positions=tuple(acting))
        truth = plain(llama.model, prompts[3], 9, v, at)
        assert list(answer.tokens) == truth.tokens
        assert (answer.steering.tokens, answer.steering.steered_cells) == (len(acting), len(truth.moved))
    assert short.tokens == found.tokens[:2]
    assert short.steering.tokens == 2


def engine_label(found):
    return next(s for s in SHARED.variants[found.answer.label] if found.tokens[: len(s)] == s)


def test_sampled_labels_are_draws_from_q(llama, prompts):
    """Each draw is the largest of log q plus its own seed's noise; the same seed gives the same label in any company."""
    ask = GenerationRequest(prompts[5], choice=SHARED, sampling=Sampling(1.0, seed=0))
    with Engine(llama, EngineConfig(max_requests=64, max_batch_tokens=1024)) as engine:
        q = torch.tensor(answered(engine, [replace(ask, sampling=Sampling())])[0].answer.probabilities)
        drawn = answered(engine, [replace(ask, sampling=Sampling(1.0, seed=seed)) for seed in range(DRAWS)])
        again = [answered(engine, [replace(ask, sampling=Sampling(1.0, seed=seed))])[0] for seed in range(5)]
        cold = answered(engine, [replace(ask, sampling=Sampling(1e-3, seed=seed)) for seed in range(20)])
        first = answered(engine, [replace(ask, sampling=Sampling(5.0, top_k=1, seed=seed)) for seed in range(20)])
    assert [one.tokens for one in again] == [one.tokens for one in drawn[:5]]
    noise = gumbel(torch.arange(DRAWS), torch.full((DRAWS,), len(ask.prompt)), torch.arange(5))
    assert [one.answer.label for one in drawn] == (q.log() + noise).argmax(-1).tolist()
    share = torch.bincount(torch.tensor([one.answer.label for one in drawn]), minlength=5) / len(drawn)
    error = (q * (1 - q) / len(drawn)).sqrt() * 4.5 + 1e-3
    assert bool(((share - q).abs() <= error).all()), (share, q)
    assert {one.answer.label for one in cold + first} == {int(q.argmax())}
    for one in drawn:
        assert one.tokens in SHARED.variants[one.answer.label]


def test_bias_and_watching(llama, prompts):
    """The bias is on the labels' scores, `biased` says whether it changed the label; a watcher is told where the label ends."""
    told = []
    with Engine(llama, EngineConfig()) as engine:
        plain = GenerationRequest(prompts[7], choice=SHARED)
        [before] = answered(engine, [plain])
        for label in range(5):
            bias = tuple(50.0 * (i == label) for i in range(5))
            [after] = answered(engine, [replace(plain, label_bias=bias)])
            assert after.answer.label == label
            assert after.answer.changed == (label != before.answer.label)
            assert after.tokens in SHARED.variants[label]
        long = replace(plain, label_bias=(0, 0, 0, 0, 50.0))
        tokens = engine.submit(long, told.append).result(30).tokens
        free = engine.submit(replace(long, max_new_tokens=12, stop=("w13",))).result(30)
        assert engine.stats().waiting == 0
    assert [one.id for one in told] == list(tokens) == list(SHARED.variants[4][0])
    assert [one.last for one in told] == [False] * 5 + [True]
    assert (free.finish_reason, free.answer.label) == ("stop_sequence", 4)


def test_log_probabilities_of_a_label_are_the_models_own(llama, prompts):
    with Engine(llama, EngineConfig()) as engine:
        asked = GenerationRequest(prompts[7], choice=SHARED, label_bias=(0, 0, 0, 0, 50.0), logprobs=True)
        [found] = answered(engine, [asked])
    sequence = torch.tensor([(*prompts[7], *found.tokens)])
    with torch.no_grad():
        raw = llama.model(sequence).logits[0].log_softmax(-1)
    own = [raw[len(prompts[7]) - 1 + i, token].item() for i, token in enumerate(found.tokens)]
    assert found.logprobs == pytest.approx(own, abs=1e-3)


def test_branching_points_stand_where_spellings_part():
    assert points(SINGLE) == ()
    assert points(FUNNEL) == ((3,),)
    assert points(SHARED) == ((7,), (9,), (7, 8))


def test_cancelled_and_failed_choices_leave_nothing(llama, prompts, settled: Callable[[Engine], bool]):
    """At any moment of the two rounds: the slot, the queue and the points are given back, others are answered right."""
    rng = random.Random(3)
    with Engine(llama, EngineConfig(max_requests=4, max_batch_tokens=64, cache_tokens=512)) as engine:
        expected = answered(engine, [GenerationRequest(prompt, choice=SHARED) for prompt in prompts[:6]])
        for _ in range(10):
            futures = [engine.submit(GenerationRequest(prompt, choice=SHARED)) for prompt in prompts[:6]]
            gone = rng.sample(range(6), 3)
            for i in gone:
                futures[i].cancel()
            for i in set(range(6)) - set(gone):
                assert futures[i].result(60).tokens == expected[i].tokens
        assert settled(engine)
        left = engine.submit(GenerationRequest(prompts[0], choice=SHARED))
    assert left.done()


def test_what_cannot_be_chosen_is_refused(llama):
    wrong = {
        "outside the vocabulary": LabelChoice((((5,),), ((300,),))),
        "no spelling": LabelChoice((((5,),), ())),
        "more than 32 tokens": LabelChoice((((5,),), (tuple(range(33)),))),
        "same tokens": LabelChoice((((5,),), ((5,),))),
        "no end token": LabelChoice((((5,),), ((5, 6),))),
        "end token is outside": LabelChoice((((5,),), ((5, 6),)), end=300),
        "at most 32 labels": LabelChoice(tuple(((i,),) for i in range(33))),
    }
    with Engine(llama, EngineConfig()) as engine:
        for said, choice in wrong.items():
            with pytest.raises(InvalidInput, match=said):
                engine.submit(GenerationRequest((1, 2), choice=choice))
        with pytest.raises(InvalidInput, match="label_bias: 2 values for 3 labels"):
            engine.submit(GenerationRequest((1, 2), choice=SINGLE, label_bias=(0.0, 1.0)))
        with pytest.raises(InvalidInput, match="max_new_tokens: missing"):
            engine.submit(GenerationRequest((1, 2)))
        with pytest.raises(
            PromptTooLong, match="max_new_tokens 6"
        ):  # room for the longest label, whatever is asked for
            engine.submit(GenerationRequest((1,) * 507, 1, choice=SHARED))
