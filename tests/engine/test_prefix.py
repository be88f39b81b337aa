"""Prompts share what no policy touches and nothing else: whatever was computed before or runs beside it, each answer is as alone."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers.generation.continuous_batching.cache_allocators.cache_allocator import compute_block_hash

from merasteer.engine import Engine, EngineConfig, LoadedModel, wrap_model
from merasteer.engine import batching as seam
from merasteer.types import Generation, GenerationRequest, Policy

from .comparing import assert_same, differ

PAGE = 4
POINTS = ("residual", "mlp_input", "reference")
PROMPT = tuple(torch.randint(1, 300, (13,), generator=torch.Generator().manual_seed(5)).tolist())
PROMPTS = (PROMPT[:11], PROMPT[:12], PROMPT)  # k·page − 1, k·page and k·page + 1 tokens, each the beginning of the next
POLICIES: dict[str, Policy | None] = {
    "none": None,
    "generation": Policy("res", 0.2),
    "other vectors": Policy("ref", 0.3),
    "all": Policy("res", 0.2, positions="all"),
    "last": Policy("mlp", 0.2, positions="last"),
    "list": Policy("res", 0.1, positions=(9, 5)),
    "list from 0": Policy("mlp", 0.1, positions=(0, 2)),
    "additive": Policy("res", strength=2.0),
    "additive, all": Policy("ref", strength=2.0, positions="all"),
    "reads": Policy("res", positions="all"),
}
SHARED = {
    "all": 0,
    "list from 0": 0,
    "additive, all": 0,
    "list": 5,
}  # tokens that no policy touches; all but the last one elsewhere
SLIDING = ("gemma2", "gemma3", "mistral")
SHARING = EngineConfig(page_size=PAGE, cache_tokens=2048)
APART = EngineConfig(page_size=PAGE, cache_tokens=2048, share_prefixes=False)
REQUESTS = [
    GenerationRequest(prompt, 3, policy, variants=((1, 2), (3, 4, 5))) for policy in POLICIES.values() for prompt in PROMPTS
]  # fmt: skip


@pytest.fixture(scope="module")
def engine(llama, make_vectors) -> Callable[..., Any]:
    @contextmanager
    def start(config: EngineConfig, loaded: LoadedModel = llama, points: Sequence[str] = POINTS) -> Iterator[Engine]:
        with Engine(loaded, config) as running:
            for seed, (key, point) in enumerate(zip(("res", "mlp", "ref"), points, strict=True), 1):
                running.register(key, make_vectors(seed, point))
            yield running

    return start


@pytest.fixture(scope="module")
def alone(engine, llama) -> Iterator[Callable[[GenerationRequest], Generation]]:
    """The answer of a request with nothing beside it, from an engine on a copy of the model that shares nothing."""
    with engine(APART, wrap_model(copy.deepcopy(llama.model), llama.tokenizer, "copy")) as apart:
        yield functools.cache(lambda request: apart.submit(request).result(60))


def hashes(tokens: Sequence[int], page: int = PAGE) -> list[int]:
    """What the library calls the whole blocks of a text."""
    found: list[int] = []
    for end in range(page, len(tokens) + 1, page):
        found.append(compute_block_hash(found[-1] if found else None, list(tokens[end - page : end])))
    return found


def registered(engine: Engine) -> set[int]:
    [allocator] = engine._manager.batch_processor.cache.cache_allocators.values()
    return set(allocator.ledger.hash_to_block)


@contextmanager
def computed(engine: Engine) -> Iterator[list[int]]:
    """Tokens of each forward pass inside."""
    passes: list[int] = []
    hook = engine.loaded.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        yield passes
    finally:
        hook.remove()


def rotations(items: Sequence[GenerationRequest]) -> Iterator[list[GenerationRequest]]:
    """Each policy comes first once."""
    for i in range(0, len(items), len(PROMPTS)):
        yield [*items[i:], *items[:i]]


def one_by_one(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Generation]:
    return [engine.submit(request).result(60) for request in requests]


def at_once(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Generation]:
    with engine.held():
        futures = [engine.submit(request) for request in requests]
    return [future.result(60) for future in futures]


def test_whatever_was_computed_before_each_answer_is_its_own(engine, alone, settled):
    for requests in rotations(REQUESTS):
        with engine(SHARING) as running:
            for request, answer in zip(requests, one_by_one(running, requests), strict=True):
                assert_same(answer, alone(request))
            assert registered(running) == set(hashes(PROMPT[:12]))
            assert settled(running)


@pytest.mark.parametrize("batch_tokens", [512, 40])  # 40: prompts in chunks
def test_whatever_runs_beside_it_each_answer_is_its_own(engine, alone, settled, batch_tokens):
    config = EngineConfig(page_size=PAGE, cache_tokens=2048, max_batch_tokens=batch_tokens)
    with engine(config) as running:
        for seed in range(3):  # the first time nothing is registered yet, later all of it
            requests = random.Random(seed).sample(REQUESTS, len(REQUESTS))
            for request, answer in zip(requests, at_once(running, requests), strict=True):
                assert_same(answer, alone(request))
        assert settled(running)


@pytest.mark.parametrize("run", [one_by_one, at_once])
def test_the_comparison_notices_sharing_by_tokens_alone(engine, alone, run):
    """What the tests above rest on: they fail where every prompt is offered and taken."""
    moving = [request for request in REQUESTS if request.policy is None or request.policy.positions == "all"]
    with engine(SHARING) as running:
        running.untouched = lambda *_: 10**6
        answers = [*run(running, moving[::-1]), *run(running, moving[::-1])]
    truths = [alone(request) for request in moving[::-1]] * 2
    assert sum(differ(answer, truth) for answer, truth in zip(answers, truths, strict=True)) >= 6


def test_what_is_shared_is_not_computed_again(engine):
    """In whole pages, up to where the policy may act, and never the last prompt token. One new token is enough to offer a prompt."""
    generator = torch.Generator().manual_seed(6)
    with engine(SHARING) as running, computed(running) as passes:
        for name, policy in POLICIES.items():
            for length in map(len, PROMPTS):
                one, other = (tuple(torch.randint(1, 300, (length,), generator=generator).tolist()) for _ in range(2))
                kept = [GenerationRequest(one, 1, policy), GenerationRequest(other, 1)]
                taken = [GenerationRequest(one, 1), GenerationRequest(other, 1, policy)]
                passes.clear()
                assert [answer.prompt_tokens for answer in one_by_one(running, kept + taken)] == [length] * 4
                whole = SHARED.get(name, length - 1) // PAGE * PAGE
                assert passes == [length, length, length - whole, length - whole], name


def test_nothing_is_shared_where_it_is_switched_off(engine):
    with engine(APART) as running, computed(running) as passes:
        one_by_one(running, [GenerationRequest(PROMPT, 1)] * 2)
    assert passes == [len(PROMPT)] * 2


def test_generated_tokens_are_never_offered(engine, alone):
    """A conversation goes on: what was generated comes back as a prompt, and its keys and values are the old policy's."""
    for name in ("none", "generation", "additive"):
        first = GenerationRequest(PROMPT, 9, POLICIES[name])
        with engine(SHARING) as running:
            answer = running.submit(first).result(30)
            assert registered(running) == set(hashes(PROMPT[:12]))
            for policy in (None, Policy("ref", 0.3)):
                following = GenerationRequest(PROMPT + answer.tokens + (7, 8, 9), 5, policy)
                assert_same(running.submit(following).result(30), alone(following))


def test_eviction_under_sharing(engine, alone, settled, prompts):
    """A restart has generated tokens in its prompt; they are not offered, and every position counts once."""
    kinds = [POLICIES[name] for name in ("generation", "all", "none", "last", "additive")]
    asked = [GenerationRequest(prompts[2 + i % 4], 10, kinds[i % 5]) for i in range(20)]
    restarts: set[str] = set()
    with engine(EngineConfig(max_requests=16, cache_tokens=160, page_size=8)) as running:
        on_batch = running.on_batch

        def watch(states: Sequence[Any], **rest: Any) -> list[int]:
            restarts.update(
                state.request_id for state in states if len(state.initial_tokens) > state._true_initial_tokens > 0
            )
            return on_batch(states, **rest)

        running.on_batch = watch
        with computed(running) as passes:
            answers = at_once(running, asked)
        for request, answer in zip(asked, answers, strict=True):
            assert_same(answer, alone(request))
        assert registered(running) <= {one for request in asked for one in hashes(request.prompt[:-1], page=8)}
        assert settled(running)
    assert len(restarts) >= 2, "the cache was not small enough to evict with tokens generated: the test shows nothing"
    with engine(EngineConfig(max_requests=16, cache_tokens=160, page_size=8, share_prefixes=False)) as running:
        with computed(running) as unshared:
            at_once(running, asked)
        assert sum(passes) < sum(unshared)


def test_cancellation_under_sharing(engine, alone, settled):
    """Whoever shares with a cancelled request keeps what it shares."""
    with engine(SHARING) as running:
        for cancelled in range(2):
            with running.held():
                futures = [running.submit(GenerationRequest(PROMPT, 200, POLICIES[name])) for name in ("none", "last")]
            kept = [running.submit(request) for request in REQUESTS]
            futures[cancelled].cancel()
            for request, future in zip(REQUESTS, kept, strict=True):
                assert_same(future.result(60), alone(request))
            futures[1 - cancelled].cancel()
            assert settled(running)


def test_a_request_cancelled_behind_its_batch_offers_nothing(engine, alone, settled):
    """With async batching a request can leave while its batch is computed: its blocks are gone when the batch is applied."""
    with engine(SHARING) as running:
        processor = running._manager.batch_processor
        update, states = processor.update_batch, []
        on_batch = running.on_batch

        def watch(batch: Sequence[Any], **rest: Any) -> list[int]:
            states.extend(batch)
            return on_batch(batch, **rest)

        def late() -> None:
            """The next batch is prepared, as far as cancellations go, before this one is applied."""
            processor.update_batch = update
            leaving.cancel()
            running.on_prepare()
            processor._update_tp_group_state()
            processor.scheduler.clear_cancelled_requests()
            update()

        running.on_batch, processor.update_batch = watch, late
        with running.held():
            leaving = running.submit(GenerationRequest(PROMPT, 50, POLICIES["generation"]))
        assert settled(running)
        assert running.failure is None
        assert states
        assert registered(running) == set()
        assert_same(running.submit(REQUESTS[0]).result(30), alone(REQUESTS[0]))
        before = registered(running)
        processor.cache.mark_complete_blocks(states[0], {"full_attention": 3})  # later still
        assert registered(running) == before


def test_every_family_shares_soundly_or_not_at_all(engine, family):
    """Layers with a sliding window overwrite their own past: what outgrows a window is not shared."""
    name, loaded = family
    prompt = PROMPT + PROMPT[::-1]  # longer than the windows
    points = ("residual",) * 3
    kinds = [None, Policy("res", 0.2), Policy("mlp", 0.2, positions="all"), Policy("ref", 0.3, positions="last")]
    requests = [GenerationRequest(prompt, 4, policy) for policy in kinds]
    with engine(APART, loaded, points) as running:
        expected = one_by_one(running, requests)
    with engine(SHARING, loaded, points) as running, computed(running) as passes:
        for answer, truth in zip(one_by_one(running, requests[::-1]), expected[::-1], strict=True):
            assert_same(answer, truth)
        assert passes[::4] == [26, 26, 26, 26] if name in SLIDING else [26, 26, 2, 2]


@pytest.mark.parametrize("name", SLIDING)
@pytest.mark.parametrize(("window", "shares"), [(18, True), (17, False), (16, False)])
def test_what_stays_within_a_window_is_shared(engine, make_tiny, name, window, shares):
    """13 tokens and 5 more have keys at 17 positions, and with async batching could write one behind these."""
    points = ("residual",) * 3
    request = GenerationRequest(PROMPT, 5, Policy("res", 0.2))
    with engine(SHARING, make_tiny(name, sliding_window=window), points) as running, computed(running) as passes:
        one, other = one_by_one(running, [request] * 2)
        assert_same(one, other)
        assert passes[::5] == ([13, 1] if shares else [13, 13])


@pytest.mark.parametrize("name", SLIDING)
@pytest.mark.parametrize("batch_tokens", [512, 40])  # 40: prompts in chunks
def test_what_outgrows_a_window_beside_it_changes_nothing_that_is_shared(
    engine, make_tiny, settled, name, batch_tokens
):
    """The same prompts with short answers, which share, and with long ones, which overwrite their own beginning."""
    points, kinds = ("residual",) * 3, [None, Policy("res", 0.2), Policy("mlp", 0.2, positions="all")]
    asked = [GenerationRequest(prompt, new, policy) for policy in kinds for prompt in PROMPTS for new in (2, 12, 40)]
    config = EngineConfig(page_size=PAGE, cache_tokens=2048, max_batch_tokens=batch_tokens)
    with engine(APART, make_tiny(name, sliding_window=24), points) as running:
        truths = dict(zip(asked, one_by_one(running, asked), strict=True))
    with engine(config, make_tiny(name, sliding_window=24), points) as running, computed(running) as passes:
        for seed in range(3):
            requests = random.Random(seed).sample(asked, len(asked))
            for request, answer in zip(requests, at_once(running, requests), strict=True):
                assert_same(answer, truths[request])
        assert settled(running)
        once = sum(passes)
    assert once < 3 * sum(len(request.prompt) + request.budget - 1 for request in asked)


def test_the_librarys_own_attention_shares_as_ours_does(engine, alone, monkeypatch):
    monkeypatch.setattr(seam, "applies", lambda _: False)
    with engine(SHARING) as running:
        for requests in (REQUESTS, REQUESTS[::-1]):
            for request, answer in zip(requests, at_once(running, requests), strict=True):
                assert_same(answer, alone(request))
