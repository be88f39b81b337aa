"""Tokens while they come: what the watcher is told is what the answer says."""

from __future__ import annotations

import math
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest

from merasteer.engine import Engine, EngineConfig, wrap_model
from merasteer.errors import EngineFailed
from merasteer.types import GeneratedToken, GenerationRequest, LabelChoice, Policy, Sampling

from .conftest import VOCAB, tiny, vectors
from .tokenizer_kinds import END, PAD, byte_fallback

PROMPTS = [tuple((7 * i + 3 * j * j) % VOCAB for j in range(5 + i)) for i in range(12)]


def test_the_tokens_told_are_the_tokens_answered_with_their_readings() -> None:
    loaded = tiny("llama")
    with Engine(loaded, EngineConfig()) as engine:
        engine.register("v", vectors(0, "residual"))
        told: dict[int, list[GeneratedToken]] = {}
        futures = []
        for i, prompt in enumerate(PROMPTS):
            request = GenerationRequest(
                prompt,
                3 + i % 5,
                Policy("v", 0.3) if i % 3 else None,
                Sampling(1.0, seed=i) if i % 2 else Sampling(),
                logprobs=True,
                trace=bool(i % 3),
            )
            futures.append(engine.submit(request, told.setdefault(i, []).append))
        answers = [future.result(30) for future in futures]
    for i, answer in enumerate(answers):
        assert tuple(token.id for token in told[i]) == answer.tokens
        assert [token.index for token in told[i]] == list(range(len(answer.tokens)))
        assert tuple(token.logprob for token in told[i]) == answer.logprobs
        assert [token.last for token in told[i]] == [False] * (len(answer.tokens) - 1) + [True]
        assert sum(token.steered for token in told[i]) == answer.steering.steered_tokens
        if i % 3:
            assert answer.predicted_error is not None
            assert (told[i][0].before, told[i][0].after) == (
                answer.predicted_error.before,
                answer.predicted_error.after,
            )
            assert tuple(token.trace for token in told[i]) == answer.trace
            assert any(token.steered and math.isclose(token.after or 0, 0.3, abs_tol=1e-5) for token in told[i])
        else:
            assert all(token.before is None and token.trace is None and not token.steered for token in told[i])


def test_an_answer_has_one_text_whether_it_is_watched_or_not() -> None:
    """Tokens that are mostly single bytes, drawn at random: characters are cut, and special tokens come in between."""
    tokenizer = byte_fallback()
    with Engine(wrap_model(tiny("llama").model, tokenizer, "bytes"), EngineConfig()) as engine:
        for seed in range(8):
            request = GenerationRequest(PROMPTS[seed], 40, sampling=Sampling(3.0, seed=seed))
            told: list[GeneratedToken] = []
            plain = engine.submit(request).result(30)
            watched = engine.submit(request, told.append).result(30)
            unused = engine.submit(replace(request, stop=("not there", END, *"¤¶"))).result(30)
            assert (plain.tokens, plain.text) == (watched.tokens, watched.text)
            assert plain.text.startswith("".join(token.text for token in told))
            shown = ["".join(token.text for token in told[:i]) for i in range(len(told))]
            assert watched.offsets == plain.offsets == tuple(map(len, shown))
            if unused.text != plain.text:
                assert END in tokenizer.decode(plain.tokens)  # it came by chance
                assert unused.finish_reason == "stop_sequence"


def test_a_special_token_stops_an_answer_by_its_text() -> None:
    tokenizer = byte_fallback()
    loaded = wrap_model(tiny("llama").model, tokenizer, "bytes")
    pad, end = tokenizer.convert_tokens_to_ids([PAD, END])
    with Engine(loaded, EngineConfig()) as engine:
        chosen = LabelChoice((((65, pad, 66, end),), ((67,),)))
        request = GenerationRequest(PROMPTS[0], 6, choice=chosen, label_bias=(1e4, -1e4))
        plain = engine.submit(request).result(30)
        stopped = engine.submit(replace(request, stop=(PAD,))).result(30)
        ended = engine.submit(replace(request, stop=(END,))).result(30)
    assert (plain.text, plain.finish_reason, plain.tokens) == ("AB", "eos_token", (65, pad, 66, end))
    assert (stopped.text, stopped.finish_reason, stopped.tokens) == ("A", "stop_sequence", (65, pad))
    assert (ended.text, ended.finish_reason, ended.tokens) == ("AB", "stop_sequence", plain.tokens)


def test_the_last_token_is_told_as_such_when_a_stop_string_ends_it() -> None:
    with Engine(tiny("llama"), EngineConfig()) as engine:
        whole = engine.submit(GenerationRequest(PROMPTS[0], 8)).result(30)
        stop = whole.text.split()[2]
        told: list[GeneratedToken] = []
        answer = engine.submit(GenerationRequest(PROMPTS[0], 8, stop=(stop,)), told.append).result(30)
    assert answer.finish_reason == "stop_sequence"
    assert [token.last for token in told] == [False] * (len(told) - 1) + [True]
    assert answer.text == whole.text[: whole.text.index(stop)]


def test_a_watcher_that_fails_loses_its_own_request_only() -> None:
    def broken(_token: GeneratedToken) -> None:
        raise RuntimeError("the event loop is closed")

    with Engine(tiny("llama"), EngineConfig(max_requests=4)) as engine:
        alone = engine.submit(GenerationRequest(PROMPTS[1], 6)).result(30).tokens
        failing = engine.submit(GenerationRequest(PROMPTS[0], 6), broken)
        others = [engine.submit(GenerationRequest(PROMPTS[1], 6)) for _ in range(3)]
        with pytest.raises(EngineFailed, match="could not be delivered"):
            failing.result(30)
        assert [other.result(30).tokens for other in others] == [alone] * 3
        assert engine.submit(GenerationRequest(PROMPTS[1], 6)).result(30).tokens == alone
        assert engine.stats().running == 0


def test_a_cancelled_watcher_hears_no_more() -> None:
    with Engine(tiny("llama"), EngineConfig()) as engine:
        told: list[GeneratedToken] = []
        future = engine.submit(GenerationRequest(PROMPTS[0], 40), lambda token: (told.append(token), future.cancel()))
        with pytest.raises(CancelledError):
            future.result(30)
        engine.submit(GenerationRequest(PROMPTS[1], 6)).result(30)
    assert len(told) <= 2
