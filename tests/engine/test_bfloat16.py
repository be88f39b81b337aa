"""bfloat16: the step is computed in float32, and what a request gets in a batch is what it gets alone, within the dtype's precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch

from merasteer.engine import Engine, EngineConfig, LoadedModel, wrap_model
from merasteer.types import Generation, GenerationRequest, Policy, SteeringVectors

from .conftest import plain_generate

CLOSE = 0.03  # of a predicted error: eight bits of mantissa through four layers


@pytest.fixture(scope="module")
def short(llama: LoadedModel) -> LoadedModel:
    return wrap_model(copy.deepcopy(llama.model).to(torch.bfloat16), llama.tokenizer, "tiny-bfloat16")


@pytest.fixture
def requests(prompts: Sequence[tuple[int, ...]]) -> list[GenerationRequest]:
    policies = [Policy("res", 0.3), Policy("mlp", 0.25), Policy("res", 0.2, positions="all"), Policy("mlp"), None]
    return [
        GenerationRequest(prompt, 6, policies[i % 5], variants=((1, 2), (3, 4))) for i, prompt in enumerate(prompts)
    ]


def serve(
    loaded: LoadedModel,
    requests: Sequence[GenerationRequest],
    vectors: dict[str, SteeringVectors],
    *,
    held: bool,
    pack: bool = True,
) -> list[Generation]:
    with Engine(loaded, EngineConfig(max_requests=32, pack_weights=pack)) as engine:
        for key, value in vectors.items():
            engine.register(key, value)
        if not held:
            return [engine.submit(request).result(60) for request in requests]
        with engine.held():
            futures = [engine.submit(request) for request in requests]
        return [future.result(60) for future in futures]


@pytest.fixture
def vectors(make_vectors: Callable[..., SteeringVectors]) -> dict[str, SteeringVectors]:
    return {"res": make_vectors(1, "residual"), "mlp": make_vectors(2, "mlp_input")}


@pytest.mark.parametrize("pack", [True, False])
def test_in_a_batch_as_alone(
    short: LoadedModel, requests: list[GenerationRequest], vectors: dict[str, SteeringVectors], pack: bool
) -> None:
    alone = serve(short, requests, vectors, held=False, pack=pack)
    batch = serve(short, requests, vectors, held=True, pack=pack)
    for request, one, many in zip(requests, alone, batch, strict=True):
        assert one.answer is not None
        assert many.answer is not None
        assert many.answer.probabilities == pytest.approx(one.answer.probabilities, abs=0.05)
        if request.policy is None:
            continue
        assert many.predicted_error is not None
        assert one.predicted_error is not None
        assert many.predicted_error.before == pytest.approx(one.predicted_error.before, abs=CLOSE)
        if request.policy.alpha is not None:
            assert many.predicted_error.after <= request.policy.alpha + CLOSE
        assert many.steering.tokens == one.steering.tokens
    equal = sum(one.tokens[0] == many.tokens[0] for one, many in zip(alone, batch, strict=True))
    assert equal >= 0.9 * len(requests)
    assert sum(answer.steering.steered_cells for answer in batch) > 100


def test_the_slow_implementation_reads_and_moves_the_same(
    short: LoadedModel, requests: list[GenerationRequest], vectors: dict[str, SteeringVectors]
) -> None:
    """The plain implementation in float32 on the same (rounded) weights."""
    exact = copy.deepcopy(short.model).float()
    batch = serve(short, requests, vectors, held=True)
    steered = 0
    for request, answer in zip(requests, batch, strict=True):
        if request.policy is None:
            continue
        v = vectors[request.policy.vectors]
        plain = plain_generate(exact, request.prompt, 1, v, request.policy)
        before, after = (torch.tensor(z).sigmoid().item() for z in plain.z[0][v.report_layer])
        assert answer.predicted_error is not None
        assert answer.predicted_error.before == pytest.approx(before, abs=2 * CLOSE)
        assert answer.predicted_error.after == pytest.approx(after, abs=2 * CLOSE)
        steered += after < before - 0.1
    assert steered >= 3
