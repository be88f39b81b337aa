"""Admission, cancellation and faults: every accepted request ends in exactly one answer, and nothing is left behind."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import pytest

from merasteer.engine import Engine, EngineConfig
from merasteer.engine.admission import end_tokens
from merasteer.errors import EmptyInputs, EngineFailed, InvalidInput, Overloaded, PromptTooLong
from merasteer.types import GenerationRequest, LabelChoice, Policy


def test_one_oversized_request_is_refused_and_harms_nobody(llama, prompts):
    with Engine(llama, EngineConfig(cache_tokens=128, page_size=8)) as engine:
        good = [engine.submit(GenerationRequest(prompt, 4)) for prompt in prompts[:8]]
        with pytest.raises(
            PromptTooLong, match=r"inputs: 120 prompt tokens and max_new_tokens 20 exceed the \d+ tokens"
        ):
            engine.submit(GenerationRequest((1,) * 120, 20))
        with pytest.raises(PromptTooLong):
            engine.submit(GenerationRequest((1,) * 5, 10**9))
        assert all(len(future.result(60).tokens) == 4 for future in good)
        largest = engine.submit(
            GenerationRequest((1,) * (engine.max_tokens - 4), 4)
        )  # what admission lets in, the cache can hold
        assert len(largest.result(60).tokens) == 4


def test_context_bounds_a_request_too(llama):
    with Engine(llama, EngineConfig()) as engine:
        assert engine.max_tokens == 512
        with pytest.raises(PromptTooLong, match="512 tokens that fit"):
            engine.submit(GenerationRequest((1,) * 500, 13))


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (GenerationRequest((), 1), EmptyInputs, "inputs"),
        (GenerationRequest((1,), 0), InvalidInput, "max_new_tokens"),
        (GenerationRequest((1, 300), 1), InvalidInput, "vocabulary"),
        (GenerationRequest((-1,), 1), InvalidInput, "vocabulary"),
        (GenerationRequest((1,), 1, stop=("",)), InvalidInput, "stop"),
        (GenerationRequest((1,), 1, Policy("nobody")), InvalidInput, "nobody"),
        (GenerationRequest((1,), 1, Policy("v", 0.3, layers=(1,))), InvalidInput, "layers"),
        (GenerationRequest((1,), 1, variants=((1,),) * 33), InvalidInput, "variants"),
        (GenerationRequest((1,), 1, variants=((1,), (300,))), InvalidInput, "variants: a token id is outside"),
        (GenerationRequest((1,), 1, variants=((1,), (-1,))), InvalidInput, "variants: a token id is outside"),
        (GenerationRequest((1,), choice=LabelChoice((((1, 2),), ((3, 300),)))), InvalidInput, "variants: a token id"),
        (GenerationRequest((1,), choice=LabelChoice((((1,),), ((1, 2),)), end=300)), InvalidInput, "the end token is"),
        (GenerationRequest((1,), choice=LabelChoice((((1, 2),), ((1, 3),)), path=(300,))), InvalidInput, "leave them"),
        (GenerationRequest((1,), choice=LabelChoice((((1,),),), settled=((0.0,),))), InvalidInput, "leave them out"),
    ],
)
def test_bad_requests_are_refused(llama, make_vectors, request_, error, says):
    with Engine(llama, EngineConfig()) as engine:
        engine.register("v", make_vectors(1, "residual", idle=(1,)))
        with pytest.raises(error, match=says):
            engine.submit(request_)
        assert engine.submit(GenerationRequest((1, 2), 1)).result(30).tokens


@pytest.mark.parametrize(
    ("named", "ends"),
    [
        (None, {7}),
        (5, {5, 7}),
        ([5, 6], {5, 6, 7}),
        ((5,), {5, 7}),
        (-1, {7}),
        ("w9", {7, 9}),
        ("eos_token", {7}),
        (["w9", 5, "pad_token"], {5, 7, 8, 9}),
    ],
)
def test_end_tokens_may_be_words_of_the_tokenizer(make_tiny, named, ends):
    loaded = make_tiny("llama")
    loaded.tokenizer.eos_token, loaded.tokenizer.pad_token = "w7", "w8"
    loaded.model.generation_config.eos_token_id = named
    assert end_tokens(loaded) == ends


@pytest.mark.parametrize("word", ["</s>", "bos_token"])
def test_an_end_token_that_is_no_token_is_refused_when_the_engine_is_made(make_tiny, word):
    loaded = make_tiny("llama")
    loaded.model.generation_config.eos_token_id = [5, word]
    with pytest.raises(InvalidInput, match=rf"eos_token_id: '{word}' is no token of this tokenizer; give its number"):
        Engine(loaded)


def test_the_queue_is_bounded(llama, prompts, settled):
    with Engine(llama, EngineConfig(max_requests=2, max_waiting=3)) as engine:
        accepted, refused = [], 0
        for prompt in prompts:
            try:
                accepted.append(engine.submit(GenerationRequest(prompt, 30)))
            except Overloaded:
                refused += 1
        assert refused > 0
        assert len(accepted) >= 5
        assert all(len(future.result(60).tokens) == 30 for future in accepted)
        assert settled(engine)


@pytest.fixture
def busy(llama, make_vectors):
    """An engine with one place, which is taken by a request that stays there until it is cancelled, and two more that wait."""
    with Engine(llama, EngineConfig(max_requests=1, max_waiting=2)) as engine:
        engine.register("v", make_vectors(1, "residual"))
        going_on = threading.Event()
        prepare = engine.on_prepare
        engine.on_prepare = lambda: (going_on.wait(0.01), prepare())  # hundreds of tokens take seconds
        first = engine.submit(GenerationRequest((1, 2, 3), 500))
        while engine.stats().running == 0:
            time.sleep(0.001)
        yield engine
        going_on.set()
        first.cancel()


def test_a_call_larger_than_the_queue_is_taken_where_there_is_room_and_refused_whole_where_there_is_none(
    busy, prompts, settled
):
    short = [GenerationRequest(prompt, 2, Policy("v", 0.3)) for prompt in prompts[:10]]
    busy.check_room()
    held = busy.submit_all(short[:1])
    batch = busy.submit_all(short)  # one waits and the limit is two
    assert (busy.stats().running, busy.stats().waiting) == (1, 11)
    for more in (short[:1], short):
        with pytest.raises(Overloaded, match="11 requests are waiting and the limit is 2"):
            busy.submit_all(more)
    with pytest.raises(Overloaded):
        busy.check_room()
    assert (busy.stats().waiting, len(busy._runs), busy._residents._known["v"].users) == (11, 12, 11)
    next(iter(busy._runs.values())).future.cancel()
    assert [len(future.result(60).tokens) for future in held + batch] == [2] * 11
    busy.check_room()
    assert settled(busy)
    assert busy._residents._known["v"].users == 0


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (GenerationRequest((), 1), EmptyInputs),
        (GenerationRequest((1,) * 600, 1), PromptTooLong),
        (GenerationRequest((1,), 1, Policy("nobody")), InvalidInput),
        (GenerationRequest((1,), 1, Policy("v", 0.3, layers=(99,))), InvalidInput),
    ],
)
def test_one_bad_request_refuses_its_call_and_leaves_nothing_behind(llama, make_vectors, prompts, settled, bad, error):
    good = [GenerationRequest(prompt, 2, Policy("v", 0.3)) for prompt in prompts[:6]]
    with Engine(llama, EngineConfig(max_requests=2, max_policies=1)) as engine:
        engine.register("v", make_vectors(1, "residual"))
        told = []
        with pytest.raises(error, match=r"^requests\[3\]: "):
            engine.submit_all([*good[:3], bad, *good[3:]], [told.append] * 7)
        with pytest.raises(error, match=r"^mine 3$"):
            engine.submit_all([*good[:3], bad], named=lambda number, refused: type(refused)(f"mine {number}"))
        assert (engine._runs, engine.stats().waiting, engine._residents._known["v"].users) == ({}, 0, 0)
        watched = engine.submit_all(good, [told.append] + [None] * 5)
        assert [len(future.result(60).tokens) for future in watched] == [2] * 6
        assert [token.id for token in told] == list(watched[0].result().tokens)
        engine.unregister("v")
        engine.register("other", make_vectors(2, "residual"))  # the only row is free: nobody uses it
        assert settled(engine)


def test_a_call_takes_a_free_place_where_none_may_wait(llama, prompts):
    with Engine(llama, EngineConfig(max_requests=2, max_waiting=0)) as engine:
        with engine.held():
            futures = engine.submit_all([GenerationRequest(prompt, 20) for prompt in prompts[:5]])
        with pytest.raises(Overloaded):
            engine.submit(GenerationRequest(prompts[6], 1))
        assert all(len(future.result(60).tokens) == 20 for future in futures)


def test_cancelled_requests_leave_no_slot_behind(llama, prompts, make_vectors, settled):
    with Engine(llama, EngineConfig(max_requests=4)) as engine:
        engine.register("v", make_vectors(1, "residual"))
        doomed = [
            engine.submit(GenerationRequest(prompt, 200, Policy("v", 0.3, positions="all"))) for prompt in prompts[:10]
        ]
        kept = engine.submit(GenerationRequest(prompts[11], 5, Policy("v", 0.3)))
        while engine.stats().running < 4:
            time.sleep(0.001)
        for future in doomed:  # some run, some wait
            assert future.cancel()
        assert len(kept.result(60).tokens) == 5
        for future in doomed:
            with pytest.raises(CancelledError):
                future.result(0)
        assert settled(engine)
        fresh = engine.submit(GenerationRequest(prompts[11], 5, Policy("v", 0.3))).result(60)
        assert fresh.tokens == kept.result().tokens
        assert fresh.steering == kept.result().steering


def test_unregistered_vectors_serve_the_requests_that_began_with_them(llama, prompts, make_vectors):
    with Engine(llama, EngineConfig(max_policies=1)) as engine:
        engine.register("old", make_vectors(1, "residual"))
        with pytest.raises(InvalidInput, match="max_policies"):
            engine.register("more", make_vectors(2, "residual"))
        alone = engine.submit(GenerationRequest(prompts[0], 40, Policy("old", 0.3))).result(60)
        running = engine.submit(GenerationRequest(prompts[0], 40, Policy("old", 0.3)))
        engine.unregister("old")
        with pytest.raises(InvalidInput, match="old"):
            engine.submit(GenerationRequest(prompts[0], 4, Policy("old", 0.3)))
        answer = running.result(60)
        assert (answer.tokens, answer.steering.steered_cells) == (alone.tokens, alone.steering.steered_cells)
        engine.register("new", make_vectors(2, "residual"))  # the row is free again


def test_a_dying_loop_answers_everyone_and_turns_the_engine_off(llama, prompts):
    engine = Engine(llama, EngineConfig(max_requests=2))
    engine.start()
    try:

        def explode(states, **rest):
            raise RuntimeError("injected")

        futures = [engine.submit(GenerationRequest(prompt, 50)) for prompt in prompts[:6]]
        engine.on_batch = explode
        for future in futures:
            with pytest.raises(EngineFailed, match="injected"):
                future.result(30)
        assert engine.failure is not None
        with pytest.raises(EngineFailed, match="restart"):
            engine.submit(GenerationRequest(prompts[0], 1))
    finally:
        engine.stop()


def test_stop_answers_what_is_left_and_takes_the_hooks_out(llama, prompts):
    engine = Engine(llama, EngineConfig(max_requests=2))
    engine.start()
    futures = [engine.submit(GenerationRequest(prompt, 300)) for prompt in prompts[:6]]
    engine.stop()
    for future in futures:
        with pytest.raises(EngineFailed, match="stopped"):
            future.result(5)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in llama.model.modules()]
    assert sum(hooks) == 0
    with Engine(llama, EngineConfig()) as again:  # the model can be used by another engine
        assert again.submit(GenerationRequest(prompts[0], 2)).result(30).tokens


def test_submitting_from_many_threads(llama, prompts, settled):
    with Engine(llama, EngineConfig(max_requests=8, max_waiting=None)) as engine:
        alone = [engine.submit(GenerationRequest(prompt, 3)).result(60).tokens for prompt in prompts]
        got: dict[tuple[int, int], tuple[int, ...]] = {}

        def client(thread: int) -> None:
            for i, prompt in enumerate(prompts):
                got[thread, i] = engine.submit(GenerationRequest(prompt, 3)).result(60).tokens

        threads = [threading.Thread(target=client, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(got[thread, i] == alone[i] for thread in range(6) for i in range(len(prompts)))
        assert settled(engine)


def test_an_evicted_request_runs_on_when_the_others_are_cancelled_or_stopped(llama, settled):
    """After an eviction the library admits nobody until a request finishes; a cancellation must count as one."""
    with Engine(llama, EngineConfig(max_requests=4, cache_tokens=128, page_size=8)) as engine:
        evicted = []
        on_batch = engine.on_batch

        def watch(states, **rest):
            evicted.extend(state.request_id for state in states if state._true_initial_tokens)
            blocked = engine._manager.batch_processor.scheduler.block_new_requests
            if blocked:
                for future in others:
                    future.cancel()
            return on_batch(states, **rest)

        engine.on_batch = watch
        with engine.held():
            others = [engine.submit(GenerationRequest((7 + i,) * 23, 80)) for i in range(2)]
            last = engine.submit(GenerationRequest((9,) * 23, 80))
        assert len(last.result(60).tokens) == 80
        assert len(engine.submit(GenerationRequest((9,) * 23, 8)).result(60).tokens) == 8
        assert settled(engine)
        assert evicted, "nothing was evicted: the test shows nothing"


@pytest.mark.parametrize("how", ["push", "finish"])
def test_an_answer_that_cannot_be_made_fails_alone(llama, prompts, settled, monkeypatch, how):
    with Engine(llama, EngineConfig()) as engine:
        with engine.held():
            broken = engine.submit(GenerationRequest(prompts[0], 5))
            sound = engine.submit(GenerationRequest(prompts[1], 5))
            run = next(iter(engine._runs.values()))
            monkeypatch.setattr(run.stream, how, lambda *_: 1 / 0)
        with pytest.raises(EngineFailed, match="could not be"):
            broken.result(30)
        assert len(sound.result(30).tokens) == 5
        assert engine.failure is None
        assert settled(engine)


def test_a_submit_that_races_with_a_dying_loop_is_answered(llama, prompts):
    engine = Engine(llama, EngineConfig())
    engine.start()
    try:
        alive = engine._alive

        def slowly():
            manager = alive()
            threading.Thread(target=engine.on_fatal, args=(RuntimeError("injected"),)).start()
            time.sleep(0.2)  # the dying loop comes in between
            return manager

        engine._alive = slowly
        with pytest.raises(EngineFailed, match="injected"):
            engine.submit(GenerationRequest(prompts[0], 400)).result(20)
    finally:
        engine.stop()
