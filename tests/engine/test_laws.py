"""Steps of a given length behind a gate, steps by class and labels that a probe says: in one batch, held against the plain
implementation.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from merasteer.engine import Engine, EngineConfig
from merasteer.engine.layers import family_of
from merasteer.errors import InvalidInput, NonFinite
from merasteer.method.steering import Laws
from merasteer.types import ClassReadouts, GenerationRequest, LabelChoice, Policy, SteeringVectors

CHOICE = LabelChoice((((5,), (6,)), ((7,),), ((8,), (9,))))
FORKED = LabelChoice((((5, 1), (5, 2)), ((7,),), ((5,),)), end=3)
ALPHAS = (0.3, 0.5, 0.7)


def kinds(make_acting, points) -> dict[str, SteeringVectors]:
    """Every law at every hook point, and the closed form beside them."""
    found = {}
    for n, point in enumerate(points):
        found[f"{point}/gated"] = make_acting(10 + n, point, "gated")
        found[f"{point}/one"] = make_acting(20 + n, point, "gated", layers=(2,))
        found[f"{point}/proportional"] = make_acting(30 + n, point, "proportional", layers=(1, 3))
        found[f"{point}/by_label"] = make_acting(40 + n, point, "gated", layers=(0, 3), labels=3)
        found[f"{point}/probe"] = make_acting(50 + n, point, "label_probe", layers=(1,), labels=3)
    return found


def test_every_law_in_one_batch_equals_the_plain_implementation(family, prompts, make_acting, make_vectors, plain):
    """With the closed form and unsteered requests among them, at every hook point of every family."""
    name, loaded = family
    held = kinds(make_acting, family_of(loaded.model).sites) | {"closed": make_vectors(1, "residual")}
    asked = []
    for i, (key, vectors) in enumerate(held.items()):
        for j in range(3):
            strength = 0.0 if vectors.law in ("label_probe", "closed_form") else 0.4 * (j + 1)
            positions = ("generation", "last", "all")[j] if vectors.law != "label_probe" else "generation"
            policy = Policy(key, ALPHAS[j] - 0.2 * (vectors.law == "label_probe"), strength, positions)
            asked.append((key, GenerationRequest(prompts[(3 * i + j) % len(prompts)], 1, policy, choice=CHOICE)))
    with Engine(loaded, EngineConfig(max_requests=32)) as engine:
        for key, vectors in held.items():
            engine.register(key, vectors)
        answers = [
            future.result(120)
            for future in [engine.submit(request) for _, request in asked]
            + [engine.submit(GenerationRequest(prompt, 2)) for prompt in prompts[:4]]
        ]
    opened = said = 0
    for (key, request), got in zip(asked, answers, strict=False):
        expected = plain(loaded.model, request.prompt, 1, held[key], request.policy)
        logits = torch.stack([expected.logits[[t[0] for t in spellings]].amax() for spellings in CHOICE.variants])
        label = int(logits.argmax()) if expected.said is None or held[key].law != "label_probe" else expected.said
        assert got.answer.label == label, (name, key)
        assert got.answer.probabilities == pytest.approx(logits.softmax(-1).tolist(), abs=2e-4), (name, key)
        if held[key].law == "label_probe":
            assert got.answer.by == ("model" if expected.said is None else "label_probe")
            assert got.answer.changed == (expected.said is not None and expected.said != int(logits.argmax()))
            assert got.steering.steered_cells == 0
            said += expected.said is not None
        else:
            assert got.steering.steered_cells == len(expected.moved), (name, key)
            opened += bool(expected.moved)
        report = held[key].report_layer
        before, after = expected.z[0][report]
        assert got.predicted_error.before == pytest.approx(torch.sigmoid(torch.tensor(before)).item(), abs=1e-4)
        assert got.predicted_error.after == pytest.approx(torch.sigmoid(torch.tensor(after)).item(), abs=1e-4)
    assert opened >= 6, "hardly a gate opened: the comparison is about nothing"
    assert said >= 2


def test_a_gate_that_never_opens_moves_nothing(llama, prompts, make_acting):
    asked = [GenerationRequest(prompt, 3, trace=True, choice=CHOICE) for prompt in prompts[:8]]
    with Engine(llama, EngineConfig()) as engine:
        for key, vectors in kinds(make_acting, ("residual",)).items():
            engine.register(key, vectors)
        alone = [engine.submit(request).result(60) for request in asked]
        for key in kinds(make_acting, ("residual",)):
            for request, before in zip(asked, alone, strict=True):
                policy = Policy(key, 1 - 1e-9, 5.0 * (not key.endswith("probe")))
                got = engine.submit(GenerationRequest(request.prompt, 3, policy, choice=CHOICE)).result(60)
                assert got.tokens == before.tokens
                assert (got.answer.label, got.answer.changed, got.answer.by) == (before.answer.label, False, "model")
                assert got.answer.probabilities == pytest.approx(before.answer.probabilities, abs=1e-5)
                assert (got.steering.steered_cells, got.steering.max_shift) == (0, 0.0)


def test_a_label_probe_says_the_whole_spelling_where_labels_begin_alike(llama, prompts, make_acting, plain):
    probe = make_acting(3, "residual", "label_probe", layers=(2,), labels=3)
    says = [plain(llama.model, prompt, 1, probe, Policy("probe", 0.4)).said for prompt in prompts[:12]]
    assert sum(said is not None for said in says) >= 3
    with Engine(llama, EngineConfig()) as engine:
        engine.register("probe", probe)
        for prompt, said in zip(prompts, says, strict=False):
            unsteered = engine.submit(GenerationRequest(prompt, choice=FORKED)).result(60)
            got = engine.submit(GenerationRequest(prompt, policy=Policy("probe", 0.4), choice=FORKED)).result(60)
            label = unsteered.answer.label if said is None else said
            assert got.answer.label == label
            assert got.tokens in FORKED.variants[label]
            assert got.answer.probabilities == pytest.approx(unsteered.answer.probabilities, abs=1e-5)


def test_scores_of_another_request_cannot_spoil_a_neighbour(llama, prompts, make_acting):
    """Class readouts that overflow fail the request that reads them, and nobody else."""
    plain = make_acting(3, "residual", "gated", layers=(1,), labels=2)
    huge = ClassReadouts(torch.full((1, 2, 48), 3e38), torch.zeros(1, 2), plain.classes.step)
    broken = SteeringVectors("residual", plain.weight, plain.bias, plain.step, 1, "gated", huge)
    other = make_acting(4, "residual", "gated", layers=(1,))
    with Engine(llama, EngineConfig()) as engine:
        engine.register("broken", broken)
        engine.register("other", other)
        request = GenerationRequest(prompts[0], 2, Policy("other", 0.2, 0.5))
        alone = engine.submit(request).result(60)
        with engine.held():
            beside = engine.submit(request)
            failing = engine.submit(GenerationRequest(prompts[1], 2, Policy("broken", 1e-9, 0.5)))
        assert beside.result(60).tokens == alone.tokens
        with pytest.raises(Exception, match="not finite"):
            failing.result(60)


def test_rows_of_class_readouts_are_given_back(llama, make_acting):
    config = EngineConfig(max_policies=4)
    with Engine(llama, config) as engine:
        for _ in range(3):
            engine.register("one", make_acting(3, "residual", "gated", layers=(1,), labels=3))
            with pytest.raises(InvalidInput, match="raise max_policies"):
                engine.register("two", make_acting(3, "residual", "gated", layers=(1,)))
            engine.unregister("one")


def test_the_law_as_a_formula():
    """Columns: closed form, gated, proportional, a group of two classes; one token each for which its own column counts."""
    laws = Laws.of(["closed_form", "gated", "proportional", "gated"], {3: [4, 5]}, 6)
    strength, alpha = torch.tensor([0.0, 0.5, 0.5, 0.5]), torch.full((4,), -1.0)
    for opens in (True, False):
        excess = torch.full((4, 6), -torch.inf)
        excess[range(4), range(4)] = (
            torch.tensor([2.0, 2.0, 2.0, 2.0]) if opens else torch.tensor([-1.0, 0.0, -0.1, -9.0])
        )
        excess[:, 4:] = torch.tensor([0.1, 0.9])
        gate, best = laws.of_tokens(torch.arange(4), strength, alpha).pull_(excess)
        assert gate[:, 0].tolist() == [opens] * 4
        assert best[3] == 1
        expected = torch.zeros(4, 6)
        if opens:
            expected[range(4), [0, 1, 2, 5]] = torch.tensor([2.0, 0.5, 0.5 * torch.tensor(1.0).sigmoid(), 0.5])
        assert torch.allclose(excess, expected)
    assert Laws.of(["closed_form"], {}) is None


def test_a_token_without_a_threshold_is_never_moved_nor_spoilt():
    """Proportional, with no α: its excess is -inf whatever is read."""
    laws = Laws.of(["proportional", "label_probe"], {1: [2, 3]}, 4).of_tokens(
        torch.tensor([0, 0, 1, 1]), torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([torch.inf, 0.0, 0.0, 0.0])
    )
    excess = torch.full((4, 4), -torch.inf)
    excess[1, 0], excess[2, 1], excess[3, 1] = 0.5, 0.5, -0.5
    excess[:, 2:] = torch.tensor([[1.0, 1.0], [torch.inf, torch.nan], [0.0, 3.0], [torch.nan, 0.0]])
    gate, best = laws.pull_(excess)
    assert gate[:, 0].tolist() == [False, True, True, False]
    assert best[2] == 1
    assert torch.allclose(
        excess, torch.tensor([[0.0] * 4, [0.5 * torch.tensor(0.5).sigmoid(), 0, 0, 0], [0.0] * 4, [0.0] * 4])
    )


@pytest.mark.parametrize("law", ["gated", "proportional"])
def test_readouts_and_steps_that_overflow_leave_neighbours_as_they_are(llama, prompts, make_acting, law):
    """What of them is multiplied by nothing must not be infinite: tokens, counts and trace of the neighbour are as without them."""
    plain, rows = make_acting(3, "residual", law), torch.zeros(4, 1)
    signs = plain.weight.sign()
    broken = replace(plain, weight=signs * 3e38, step=signs * 3e38)
    apart = replace(plain, weight=signs * 3e38, bias=rows[:, 0], step=signs * 1e30)
    request = GenerationRequest(prompts[0], 3, Policy("fine", 0.3, 0.5), trace=True)
    with Engine(llama, EngineConfig()) as engine:
        for key, vectors in {"fine": make_acting(4, "residual", law), "broken": broken, "apart": apart}.items():
            engine.register(key, vectors)
        alone = engine.submit(request).result(60)
        with engine.held():
            failing = [engine.submit(GenerationRequest(prompts[1], 3, Policy(key, 0.3))) for key in ("broken", "apart")]
            beside = engine.submit(request)
        found = beside.result(60)
        assert found.tokens == alone.tokens
        assert found.steering.steered_cells == alone.steering.steered_cells > 0
        assert found.steering.mean_shift == pytest.approx(alone.steering.mean_shift, rel=1e-4)
        for one, two in zip(found.trace, alone.trace, strict=True):
            assert one.after == pytest.approx(two.after, abs=1e-5)
        assert all(isinstance(one.exception(60), NonFinite) for one in failing)


@pytest.mark.parametrize("choice", [LabelChoice((((5,),), ((7,),))), None], ids=["fewer labels", "none"])
def test_a_label_probe_says_no_label_that_the_request_lacks(llama, prompts, make_acting, choice):
    """It would end the generation of all: it is refused before, and its readouts may still be read."""
    with Engine(llama, EngineConfig()) as engine:
        engine.register("probe", make_acting(3, "residual", "label_probe", layers=(2,), labels=3))
        with pytest.raises(InvalidInput, match="policy: 'probe' is a label probe of 3 classes"):
            engine.submit(GenerationRequest(prompts[0], 1, Policy("probe", 1e-6), choice=choice))
        watched = engine.submit(GenerationRequest(prompts[0], 1, Policy("probe"), choice=choice)).result(60)
        assert watched.predicted_error is not None
        assert (watched.answer is None) or watched.answer.by == "model"


def test_what_a_pass_said_is_not_kept_for_the_next(llama, prompts, make_acting):
    """Behind the label one token follows the other in passes that share what they know of their requests."""
    kept = []
    with Engine(llama, EngineConfig()) as engine:
        engine.register("probe", make_acting(3, "residual", "label_probe", layers=(2,), labels=3))

        def look(_token):
            moves = engine._steering._facts.moves["residual"]
            kept.append(len(moves._gates))

        request = GenerationRequest(prompts[0], 12, Policy("probe", 1e-6), choice=CHOICE)
        assert engine.submit_all([request], [look])[0].result(60).answer.by == "label_probe"
    assert kept == [1] * 12
