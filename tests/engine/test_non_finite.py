"""A number that is not finite fails its own request, whatever family and whatever part of it, and nobody else's."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from merasteer.engine import Engine, EngineConfig, LoadedModel
from merasteer.errors import InvalidInput, NonFinite
from merasteer.types import GenerationRequest, Policy

BAD = 299  # the token whose embedding is spoilt
CONFIG = EngineConfig(max_requests=16, max_batch_tokens=24, cache_tokens=2048, page_size=8)
FAMILIES = ["llama", "mistral", "gemma2", "gemma3", "gpt_neox"]  # each kind of attention


def prompt(i: int, length: int = 12) -> tuple[int, ...]:
    return tuple((31 * i + 7 * j) % 290 + 1 for j in range(length))


def spoilt(loaded: LoadedModel, value: float) -> LoadedModel:
    """The same model, but for one token: what the model makes of it is not finite."""
    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        model.get_input_embeddings().weight[BAD, 3] = value
        model.get_output_embeddings().weight[BAD] = 0.0  # never said
    return replace(loaded, model=model)


@pytest.fixture(scope="module")
def tied(make_tiny: Any) -> Any:
    """Tiny models by family, with output embeddings of their own."""
    return {family: make_tiny(family, tie_word_embeddings=False) for family in FAMILIES}


def answers(engine: Engine, requests: list[GenerationRequest]) -> list[Any]:
    """Of each request its tokens, or its error."""
    with engine.held():
        futures = [engine.submit(request) for request in requests]
    return [error if (error := one.exception(60)) else one.result().tokens for one in futures]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_neighbours_are_answered_as_without_it(tied: Any, make_vectors: Any, family: str, value: float) -> None:
    """The spoilt token at the end, at the start, and in an early chunk of a long prompt: in the keys and values alone."""
    policies = [None, Policy("a", 0.3, positions="all"), Policy("a", 0.3), None]
    fine = [GenerationRequest(prompt(i), 6, policies[i % 4]) for i in range(6)]
    middle = (*prompt(7, 4), BAD, *prompt(8, 60))
    bad = [
        GenerationRequest((*prompt(6), BAD), 4),
        GenerationRequest((BAD, *prompt(6)), 4, Policy("a", 0.3, positions="all")),
        GenerationRequest(middle, 4, Policy("a", 0.3)),
    ]
    mixed = [one for pair in zip(fine, [*bad, *bad], strict=True) for one in pair]
    with Engine(spoilt(tied[family], value), CONFIG) as engine:
        engine.register("a", make_vectors(1, "residual"))
        expected = answers(engine, fine)
        found = answers(engine, mixed)
        assert found[::2] == expected
        assert all(isinstance(one, NonFinite) for one in found[1::2])  # also where a sliding window has left it behind
        assert answers(engine, fine) == expected  # pages that it left behind are used again
        assert engine.failure is None


def test_it_is_told_with_its_place(tied: Any) -> None:
    with Engine(spoilt(tied["llama"], float("nan")), CONFIG) as engine:
        [error] = answers(engine, [GenerationRequest((*prompt(1), BAD), 4)])
    assert error.code == "non_finite"
    assert "of this request is not finite behind 13 prompt and 0 new tokens; look at the model's weights" in str(error)


def test_a_step_that_is_not_finite_fails_the_request_that_takes_it(tied: Any, make_vectors: Any) -> None:
    """What a request may ask for, not the model's own numbers."""
    plain = GenerationRequest(prompt(1), 4)
    moved = GenerationRequest(prompt(1), 4, Policy("a", None, 3e38))
    with Engine(tied["llama"], CONFIG) as engine:
        engine.register("a", make_vectors(1, "residual"))
        [alone] = answers(engine, [plain])
        found, failed, steered = answers(engine, [plain, moved, GenerationRequest(prompt(2), 4, Policy("a", 0.3))])
    assert found == alone
    assert isinstance(failed, NonFinite)
    assert isinstance(steered, tuple)


def test_a_readout_that_would_overflow_at_everybodys_tokens_is_refused(tied: Any, make_vectors: Any) -> None:
    """Every token of a pass meets every readout in use: what is infinite for a neighbour could not be told from its own."""
    plain = make_vectors(1, "residual")
    with Engine(tied["llama"], CONFIG) as engine:
        with pytest.raises(InvalidInput, match=r"weight holds a value above 1e\+30"):
            engine.register("a", replace(plain, weight=plain.weight.sign() * 3e38, step=plain.step * 1e-38))
        engine.register("a", plain)


def test_a_watcher_hears_nothing_of_it(tied: Any) -> None:
    """No token of such a step is handed out."""
    heard: list[Any] = []
    with Engine(spoilt(tied["llama"], float("nan")), CONFIG) as engine:
        [future] = engine.submit_all([GenerationRequest((BAD, 1, 2), 4)], [heard.append])
        assert isinstance(future.exception(60), NonFinite)
    assert heard == []
