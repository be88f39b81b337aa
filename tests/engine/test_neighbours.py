"""No answer depends on who else is in the batch, or packed in the same pass: all that a request can ask, all at once, in every family.

A small cache, evictions, shared prompts, prompts in chunks, cancellations, `exact`, labels, bias, lists of positions, sampling. Each
request is compared with itself alone, on a copy of the model, with nothing shared.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from merasteer.engine import Engine, EngineConfig, LoadedModel, wrap_model
from merasteer.engine.layers import family_of
from merasteer.types import GeneratedToken, Generation, GenerationRequest, LabelChoice, Policy, Sampling

from .comparing import assert_same
from .conftest import BORDER, DYNAMIC, FAMILIES, VOCAB, tiny, vectors

CASES = sorted([*FAMILIES, "llama_dynamic"])
WINDOWED = ("mistral", "gemma2", "gemma3")  # they hold little of a long request, and the library shares none of it
ALONE = EngineConfig(max_requests=1, max_batch_tokens=512, share_prefixes=False)
LABELS = (
    LabelChoice((((1,), (2,)), ((3,), (4,), (5,)))),
    LabelChoice((((20, 21, 22), (23,)), ((20, 24),), ((25, 26),))),  # begin alike: later branching points
    LabelChoice((((30,),), ((30, 31),), ((32, 33, 34),)), end=0),  # one begins another
)


def made(name: str) -> LoadedModel:
    """A family's tiny model; of those whose positions follow the length, prompts lie on both sides of the border."""
    if name == "llama_dynamic":
        return tiny("llama", rope_parameters=DYNAMIC, max_position_embeddings=BORDER)
    return tiny(name)


def crowded(name: str) -> EngineConfig:
    """Room for two long requests or a few short ones."""
    tokens = 64 if name in WINDOWED else 112
    return EngineConfig(max_requests=16, max_batch_tokens=28, cache_tokens=tokens, page_size=4)


def requests(count: int, seed: int, keys: Sequence[str]) -> list[GenerationRequest]:
    """Random ones. Prompts of 4 to 44 tokens begin as one of three texts do, so that most could share with some."""
    dice = random.Random(seed)
    texts = [tuple(dice.randrange(1, VOCAB) for _ in range(44)) for _ in range(3)]
    return [_request(dice, texts, keys) for _ in range(count)]


def _request(dice: random.Random, texts: Sequence[tuple[int, ...]], keys: Sequence[str]) -> GenerationRequest:
    text, length = dice.choice(texts), dice.randint(4, 44)
    own = dice.choice((0, 0, 1, 3))
    prompt = (*text[: length - own], *(dice.randrange(1, VOCAB) for _ in range(own)))
    labels = dice.choice((None, None, *LABELS))
    variants = ((1, 2), (3, 4, 5), (6,)) if labels is None and dice.random() < 0.7 else None
    classes = len(labels.variants) if labels is not None else len(variants or ())
    sampled = Sampling(dice.uniform(0.5, 1.2), dice.choice((None, 20)), dice.choice((None, 0.9)), dice.randrange(2**31))
    return GenerationRequest(
        prompt=prompt,
        max_new_tokens=None if labels is not None and dice.random() < 0.6 else dice.choice((1, 4, 9, 20)),
        policy=_policy(dice, length, keys),
        sampling=sampled if dice.random() < 0.3 else Sampling(),
        stop=(f" w{dice.randrange(VOCAB)}",) if dice.random() < 0.1 else (),
        choice=labels,
        variants=variants,
        position=dice.choice(("last", "exact")) if labels is None else "last",
        label_bias=tuple(dice.uniform(-3, 3) for _ in range(classes)) if classes and dice.random() < 0.4 else None,
        acts=dice.choice((None, None, 2)),
        logprobs=dice.random() < 0.5,
        trace=dice.random() < 0.2,
    )


def _policy(dice: random.Random, length: int, keys: Sequence[str]) -> Policy | None:
    if dice.random() < 0.2:
        return None
    listed = tuple(dice.sample(range(length), dice.randint(1, min(3, length))))
    where: Any = dice.choice(("generation", "all", "last", listed))
    how = dice.choice(({"alpha": 0.2}, {"alpha": 0.35}, {"strength": 0.5}, {"alpha": 0.3, "layers": (0, 2)}, {}))
    return Policy(dice.choice(keys), positions=where, **how)  # type: ignore[arg-type]


class Company:
    """An engine in which requests meet, and what happened there."""

    def __init__(self, engine: Engine) -> None:
        self.seen: Counter[str] = Counter()
        self._engine, self._last = engine, {}
        cache = engine._manager.batch_processor.cache  # type: ignore[union-attr]
        search, on_batch = cache.search_prefix_match, engine.on_batch

        def searching(*given: Any) -> int:
            found = int(search(*given))
            self.seen["shared tokens"] += found
            return found

        def watching(states: Sequence[Any], **rest: Any) -> list[int]:
            for state in states:
                self.seen["evictions"] += bool(state._true_initial_tokens) and self._last.get(state.request_id) != id(
                    state
                )
                self._last[state.request_id] = id(state)
                self.seen["chunks"] += bool(state.remaining_prefill_tokens)
            return on_batch(states, **rest)

        cache.search_prefix_match, engine.on_batch = searching, watching  # type: ignore[method-assign]

    def answers(self, asked: Sequence[GenerationRequest], leaving: Sequence[GenerationRequest]) -> list[Generation]:
        """Of all that are asked. Between them stand some that leave: while they wait, or when they have told a few tokens."""
        futures: list[Any] = []
        gone: list[Any] = []

        def leave(number: int, after: int) -> Callable[[GeneratedToken], None]:
            return lambda token: gone[number].cancel() if token.index >= after else None

        every = max(1, len(asked) // max(1, len(leaving)))
        with self._engine.held():
            for i, request in enumerate(asked):
                futures.append(self._engine.submit(request))
                if i % every == 0 and len(gone) < len(leaving):
                    gone.append(self._engine.submit(leaving[len(gone)], leave(len(gone), len(gone) % 3)))
            for future in gone[::4]:
                future.cancel()
        found = [future.result(300) for future in futures]
        self.seen["cancelled"] += sum(future.cancelled() for future in gone)
        return found


def check(name: str, count: int, seed: int, settled: Callable[[Engine], bool]) -> Counter[str]:
    """Asks `count` random requests together and alone. Raises AssertionError where one is answered otherwise."""
    loaded = made(name)
    apart = wrap_model(copy.deepcopy(loaded.model), loaded.tokenizer, "copy")
    points = list(family_of(loaded.model).sites)
    kinds = {point: vectors(5 + i, point, idle=(3,) if i == 1 else ()) for i, point in enumerate(points)}
    asked = requests(count, seed, points)
    with Engine(apart, ALONE) as engine:
        for point, kind in kinds.items():
            engine.register(point, kind)
        expected = [engine.submit(request).result(60) for request in asked]
    with Engine(loaded, crowded(name)) as engine:
        for point, kind in kinds.items():
            engine.register(point, kind)
        company = Company(engine)
        found = company.answers(asked, requests(count // 4, seed + 1, points))
        assert settled(engine)
        assert engine.failure is None
    for i, (answer, truth) in enumerate(zip(found, expected, strict=True)):
        assert_same(answer, truth, (name, i, asked[i]))
    company.seen["steered"] = sum(answer.steering.steered_cells > 0 for answer in found)
    return company.seen


def assert_crowded(name: str, seen: Counter[str]) -> None:
    """What would show nothing if it had not happened."""
    wanted = ["chunks", "cancelled", "steered"]
    for what in wanted if name in WINDOWED else [*wanted, "evictions", "shared tokens"]:
        assert seen[what], (what, seen)


@pytest.mark.parametrize("name", CASES)
def test_whoever_is_beside_it_each_answer_is_its_own(name: str, settled: Callable[[Engine], bool]) -> None:
    assert_crowded(name, check(name, 12, 0, settled))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_five_hundred_requests_of_a_family_are_each_answered_as_alone(
    name: str, settled: Callable[[Engine], bool], record_property: Callable[[str, object], None]
) -> None:
    seen = check(name, 500, 7, settled)
    assert_crowded(name, seen)
    for what, number in seen.items():
        record_property(what, number)
