"""Short prompts overtake long ones, long ones are not overtaken for ever. Counted in forward passes, not in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from transformers.generation.continuous_batching.requests import RequestStatus
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

from merasteer.engine import Engine, EngineConfig, LoadedModel
from merasteer.engine.scheduling import AGING
from merasteer.types import GenerationRequest

CONFIG = EngineConfig(max_requests=32, max_batch_tokens=64, cache_tokens=8192, page_size=8, share_prefixes=False)


def first_tokens(engine: Engine) -> dict[str, int]:
    """request id -> the forward pass that gave its first token; filled while the engine runs."""
    passes, found, on_step = 0, dict[str, int](), engine.on_step

    def watch(step: Any) -> None:
        nonlocal passes
        passes += 1
        for part in step.delivered:
            if part.token is not None:
                found.setdefault(part.request_id, passes)
        on_step(step)

    engine.on_step = watch  # type: ignore[method-assign]
    return found


def prompt(length: int, seed: int) -> tuple[int, ...]:
    return tuple((seed + 7 * i) % 300 for i in range(length))


def test_short_prompts_do_not_wait_for_long_ones(llama: LoadedModel) -> None:
    with Engine(llama, CONFIG) as engine:
        first = first_tokens(engine)
        with engine.held():
            for seed in range(8):
                engine.submit(GenerationRequest(prompt(400, seed), 2))
            futures = [engine.submit(GenerationRequest(prompt(12, seed), 2)) for seed in range(8)]
        for future in futures:
            future.result(60)
        short = [first[f"r{i}"] for i in range(8, 16)]
    assert max(short) <= 3, short  # 8 × 12 tokens fit in two passes of 64; in order of arrival they would wait for 50


def test_a_long_prompt_is_not_overtaken_for_ever(llama: LoadedModel) -> None:
    length, turns = 200, 100
    with Engine(llama, CONFIG) as engine:
        first = first_tokens(engine)
        with engine.held():  # twice as many short prompts as a pass can take, from the first pass to the last
            long = engine.submit(GenerationRequest(prompt(length, 0), 1))
            futures = [engine.submit(GenerationRequest(prompt(60, seed), 1)) for seed in range(turns)]
        for future in [long, *futures]:
            future.result(60)
    # At most it waits for those that held a slot when it came, and for those that came within length / AGING passes.
    slots = (CONFIG.max_requests * 60 + length) / CONFIG.max_batch_tokens
    assert first["r0"] <= slots + length / AGING + 2
    assert first["r0"] < turns / 2


def test_equal_prompts_keep_their_order(llama: LoadedModel) -> None:
    with Engine(llama, CONFIG) as engine:
        first = first_tokens(engine)
        with engine.held():
            futures = [engine.submit(GenerationRequest(prompt(30, seed), 1)) for seed in range(20)]
        for future in futures:
            future.result(60)
    passes = [first[f"r{i}"] for i in range(20)]
    assert passes == sorted(passes)


@pytest.mark.parametrize("lengths", [(400, 12, 200, 40, 8), (8, 8, 300, 300, 60)])
def test_the_order_changes_no_answer(llama: LoadedModel, lengths: Sequence[int]) -> None:
    requests = [GenerationRequest(prompt(length, i), 6) for i, length in enumerate(lengths)]
    with Engine(llama, CONFIG) as engine:
        alone = [engine.submit(request).result(60).tokens for request in requests]
        with engine.held():
            futures = [engine.submit(request) for request in requests]
        assert [future.result(60).tokens for future in futures] == alone


def test_who_waits_while_nobody_is_admitted_keeps_its_turn(llama: LoadedModel) -> None:
    """After an eviction waiting requests are no candidates for a while: a long prompt must not grow young again."""
    with Engine(llama, CONFIG) as engine:
        scheduler = engine._manager.batch_processor.scheduler

        class State:
            def __init__(self, name: str, tokens: int) -> None:
                self.request_id, self.status = name, RequestStatus.PENDING
                self.remaining_prefill_tokens = [0] * tokens

        long, short = State("long", 10 * AGING), State("short", 8)
        order: list[str] = []
        scheduler.waiting_requests["long"] = long
        inherited = FIFOScheduler._process_candidates
        try:
            FIFOScheduler._process_candidates = lambda _self, candidates: order.extend(s.request_id for s in candidates)
            scheduler._process_candidates([long])
            for _ in range(11):
                scheduler._process_candidates([])  # blocked: it waits, and is not among the candidates
            scheduler._process_candidates([short, long])
        finally:
            FIFOScheduler._process_candidates = inherited
            del scheduler.waiting_requests["long"]
    assert order == ["long", "long", "short"]
