"""Engines beside one another, one after another, and vectors that come and go while requests run."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from merasteer.engine import Engine, EngineConfig, LoadedModel, wrap_model
from merasteer.engine.batching import SteeringManager
from merasteer.errors import EngineFailed
from merasteer.types import GenerationRequest, Policy, SteeringVectors

from .conftest import tiny


def test_two_engines_in_one_process_answer_for_themselves(llama: LoadedModel, qwen: LoadedModel) -> None:
    requests = [GenerationRequest(tuple((3 + i + 5 * j) % 300 for j in range(6 + i)), 24) for i in range(6)]
    with Engine(llama) as one, Engine(qwen) as other:
        alone = [[engine.submit(request).result(60).tokens for request in requests] for engine in (one, other)]
        for _ in range(4):
            futures = [[engine.submit(request) for request in requests] for engine in (one, other)]
            assert [[future.result(60).tokens for future in each] for each in futures] == alone


@pytest.mark.parametrize("packed", [True, False])
def test_a_second_engine_on_the_same_model_is_refused_until_the_first_stops(packed: bool) -> None:
    """Whatever wraps it: the hooks are the blocks', and so would steer the requests of both."""
    loaded, config = tiny("llama"), EngineConfig(pack_weights=packed)
    other = wrap_model(copy.copy(loaded.model), loaded.tokenizer, "another name")  # the same weights
    with Engine(loaded, config) as first:
        for model in (loaded, other):
            with pytest.raises(EngineFailed, match=r"another engine runs on this model.*stop that one first"):
                Engine(model, config).start()
        assert len(first.submit(GenerationRequest((1, 2, 3), 3)).result(30).tokens) == 3
    for model in (loaded, other):
        with Engine(model, config) as second:
            assert len(second.submit(GenerationRequest((1, 2, 3), 3)).result(30).tokens) == 3


def test_an_engine_that_did_not_start_holds_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("llama")
    with monkeypatch.context() as patched:
        patched.setattr(SteeringManager, "_create_batch_processor", lambda _: 1 / 0)
        with pytest.raises(EngineFailed, match="did not start"):
            Engine(loaded).start()
    with Engine(loaded) as engine:
        assert len(engine.submit(GenerationRequest((1, 2, 3), 3)).result(30).tokens) == 3


def test_of_engines_that_start_at_once_on_one_model_one_does() -> None:
    engines = [Engine(loaded) for loaded in [tiny("llama")] for _ in range(4)]
    refused: list[EngineFailed] = []

    def start(engine: Engine) -> None:
        try:
            engine.start()
        except EngineFailed as error:
            refused.append(error)

    threads = [threading.Thread(target=start, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    for engine in engines:
        engine.stop()


def test_graphs_are_asked_for_in_vain_on_a_cpu(
    llama: LoadedModel, make_vectors: Callable[..., SteeringVectors]
) -> None:
    with Engine(llama, EngineConfig(cuda_graphs=True, async_batching=True)) as engine:
        engine.register("v", make_vectors(0, "residual"))
        assert engine.submit(GenerationRequest((1, 2, 3), 3, Policy("v", 0.3))).result(30).predicted_error is not None


def test_vectors_come_and_go_while_requests_run(
    llama: LoadedModel, make_vectors: Callable[..., SteeringVectors]
) -> None:
    """Keys are registered, used, forgotten and registered anew with other vectors; each request keeps those it was sent under."""
    config = EngineConfig(max_requests=8, max_policies=6)
    request = GenerationRequest((5, 6, 7, 8), 12, Policy("k", 0.3))
    kinds = [make_vectors(seed, ("residual", "mlp_input")[seed % 2]) for seed in range(4)]
    with Engine(llama, config) as engine:
        truth = []
        for vectors in kinds:
            engine.register("k", vectors)
            truth.append(engine.submit(request).result(30))
            engine.unregister("k")
        assert len({answer.predicted_error.before for answer in truth if answer.predicted_error}) == 4
        wrong: list[str] = []

        def user(name: str, turns: int) -> None:
            for turn in range(turns):
                kind = (turn + ord(name)) % 4
                engine.register(name, kinds[kind])
                future = engine.submit(replace(request, policy=Policy(name, 0.3)))
                engine.unregister(name)
                answer = future.result(60)
                if (
                    answer.tokens != truth[kind].tokens
                    or answer.steering.steered_cells != truth[kind].steering.steered_cells
                ):
                    wrong.append(f"{name} {turn}")

        threads = [threading.Thread(target=user, args=(name, 25)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert engine.failure is None
        engine.submit(GenerationRequest((1, 2), 2)).result(30)
        assert not any(table.in_use for table in engine._steering.tables.values())


def test_who_still_runs_when_the_engine_stops_is_told_so(llama: LoadedModel) -> None:
    with Engine(llama) as engine:
        future = engine.submit(GenerationRequest((1, 2, 3), 400))
        while not engine.stats().running:
            pass
    with pytest.raises(EngineFailed, match="it was stopped before"):
        future.result(10)
