"""What a request gets in a full batch is what it gets alone, whatever else runs, however the library schedules it."""

from __future__ import annotations

import pytest

from merasteer.engine import Engine, EngineConfig
from merasteer.types import Generation, GenerationRequest, Policy, Sampling

from .comparing import assert_same

POLICIES = [None, Policy("res", 0.3), Policy("mlp", 0.2, positions="all"), Policy("ref", 0.25, layers=(0, 2)), Policy("res"),
            Policy("mlp", strength=0.5),
    Policy("res", 0.3, positions="last"),
    Policy("ref", 0.2, positions=(0, 2, 4), layers=(0, 1)),
    Policy("mlp", 0.25, positions=(3, 1)),
    Policy("gated", 0.4, 0.7), Policy("proportional", 0.5, 1.3, positions="all"),
    Policy("by_label", 0.45, 0.9), Policy("by_label", 0.3, 0.4, positions=(1, 2))]  # fmt: skip
SAMPLED = lambda i: Sampling(temperature=0.8 + 0.1 * (i % 3), top_k=40 if i % 2 else None, top_p=0.9, seed=i)  # noqa: E731


@pytest.fixture(scope="module")
def requests(prompts):
    return [
        GenerationRequest(
            prompt,
            max_new_tokens=6 + i % 5,
            policy=POLICIES[i % len(POLICIES)],
            sampling=SAMPLED(i) if i % 4 == 3 else Sampling(),
            variants=((1, 2), (3, 4, 5)) if i % 2 else None,
            position="exact" if i % 3 == 0 else "last",
            label_bias=(0.0, 3.0 * (i % 4)) if i % 8 in (1, 3) else None,
            logprobs=i % 5 == 0,
            trace=i % 5 == 1,
        )
        for i, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def serve(llama, make_vectors, make_acting, settled):
    def run(requests, config, *, one_by_one=False, tamper=None) -> list[Generation]:
        with Engine(llama, config) as engine:
            engine.register("res", make_vectors(1, "residual"))
            engine.register("mlp", make_vectors(2, "mlp_input", idle=(1,)))
            engine.register("ref", make_vectors(3, "reference", idle=(3,)))
            engine.register("gated", make_acting(4, "residual", "gated"))
            engine.register("proportional", make_acting(5, "residual", "proportional", layers=(1, 3)))
            engine.register("by_label", make_acting(6, "mlp_input", "gated", layers=(0, 2), labels=3))
            if tamper is not None:
                tamper(engine)
            if one_by_one:
                answers = [engine.submit(request).result(120) for request in requests]
            else:
                answers = [future.result(120) for future in [engine.submit(request) for request in requests]]
            assert settled(engine)
            return answers

    return run


@pytest.fixture(scope="module")
def alone(serve, requests):
    return serve(requests, EngineConfig(max_requests=32), one_by_one=True)


def assert_all_same(some: list[Generation], others: list[Generation]) -> None:
    for i, (a, b) in enumerate(zip(some, others, strict=True)):
        assert_same(a, b, i)


def test_mixed_policies_in_one_batch_equal_each_alone(serve, requests, alone):
    assert_all_same(serve(requests, EngineConfig(max_requests=32)), alone)
    moved = [a.steering.steered_cells for a in alone]
    assert sum(count > 0 for count in moved) >= 12  # the comparison is about something


def test_chunked_prefill(serve, requests, alone):
    assert max(len(request.prompt) for request in requests) > 16
    assert_all_same(serve(requests, EngineConfig(max_requests=16, max_batch_tokens=16)), alone)


def test_fewer_slots_than_requests(serve, requests, alone):
    assert_all_same(serve(requests, EngineConfig(max_requests=3)), alone)


def test_eviction_recomputes_and_counts_each_position_once(serve, requests, alone):
    restarts = []

    def watch(engine):
        on_batch = engine.on_batch

        def counting(states, **rest):
            restarts.extend(state.request_id for state in states if state._true_initial_tokens)
            return on_batch(states, **rest)

        engine.on_batch = counting

    tight = EngineConfig(max_requests=16, cache_tokens=160, page_size=8)
    assert_all_same(serve(requests, tight, tamper=watch), alone)
    assert len(set(restarts)) >= 3, "the cache was not small enough to evict: the test shows nothing"


@pytest.mark.parametrize("rows", [32, 64])
def test_padding_is_billed_to_nobody(serve, requests, alone, rows):
    def pad(engine):
        processor = engine._manager.batch_processor
        processor.model_runner.pad_inputs = True
        processor.cb_config.q_padding_interval_size, processor.cb_config.kv_padding_interval_size = 64, 64

    assert_all_same(serve(requests, EngineConfig(max_requests=rows, cache_tokens=2048), tamper=pad), alone)


def test_stop_strings(serve, requests, alone, llama):
    """Each request stops at a text that it generates anyway; the counts are those of the shorter answer."""
    greedy = [i for i, request in enumerate(requests) if request.sampling.greedy and len(set(alone[i].tokens[:4])) == 4]
    assert len(greedy) >= 4
    stopping = [
        GenerationRequest(
            **{
                **requests[i].__dict__,
                "stop": (f" w{alone[i].tokens[3]}",),
                "max_new_tokens": requests[i].max_new_tokens,
            }
        )
        for i in greedy
    ]
    together = serve(stopping, EngineConfig(max_requests=32))
    assert_all_same(together, serve(stopping, EngineConfig(max_requests=32), one_by_one=True))
    for i, answer in zip(greedy, together, strict=True):
        assert answer.finish_reason == "stop_sequence"
        assert answer.tokens == alone[i].tokens[:4]
        assert answer.text == "".join(f" w{token}" for token in alone[i].tokens[:3])


def test_policy_off_equals_a_model_without_hooks(serve, prompts, llama, plain):
    off = [GenerationRequest(prompt, 8, Policy("res") if i % 2 else None) for i, prompt in enumerate(prompts)]
    answers = serve(off, EngineConfig(max_requests=32))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert list(answer.tokens) == plain(llama.model, prompt, 8, None, None).tokens
        assert answer.steering.cells == answer.steering.tokens == 0


def test_batch_equals_generate(serve, prompts, llama):
    import torch

    answers = serve([GenerationRequest(prompt, 8) for prompt in prompts[:6]], EngineConfig())
    for prompt, answer in zip(prompts[:6], answers, strict=True):
        ids = torch.tensor([prompt])
        whole = llama.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        assert answer.tokens == tuple(whole[0, len(prompt) :].tolist())


def test_without_packed_weights(serve, requests, alone):
    assert_all_same(serve(requests, EngineConfig(max_requests=32, pack_weights=False)), alone)
