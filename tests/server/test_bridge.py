"""From a plan to the engine's request: every field of the body that the engine should see reaches it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from mera_server.bridge import _until_gone, engine_request
from mera_server.catalog import Catalog, Probe
from mera_server.resolve import Plan

from merasteer.errors import EngineFailed
from merasteer.types import Generation, GenerationRequest, LabelChoice, Policy, Sampling

from .conftest import holding

MakePlan = Callable[..., Plan]


def test_every_field_reaches_the_engine(make_plan: MakePlan) -> None:
    parameters = {
        "max_new_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop": ["x"], "seed": 8, "details": True,
    }  # fmt: skip
    steering = {"task": "good", "alpha": 0.2, "positions": "all", "layers": [2]}
    made = make_plan({"parameters": parameters, "steering": steering, "details": "trace"})
    assert engine_request(made, (1, 2)) == GenerationRequest(
        prompt=(1, 2),
        max_new_tokens=5,
        policy=Policy("aa" * 32, 0.2, 0.0, "all", (2,)),
        sampling=Sampling(0.5, 4, 0.9, 8),
        stop=("x",),
        variants=((1,), (2, 3)),
        position="last",
        acts=1,
        logprobs=True,
        trace=True,
    )


def test_the_label_bias_reaches_the_engine(make_plan: MakePlan, catalog: Catalog, good: Probe) -> None:
    own = holding(good, method="logit_bias", alpha=None, label_bias=(0.5, -0.5))
    made = make_plan({"steering": {"task": "good"}}, catalog=replace(catalog, latest={"good": own}))
    found = engine_request(made, (1,))
    assert (found.label_bias, found.policy, found.variants) == ((0.5, -0.5), Policy("aa" * 32), ((1,), (2, 3)))
    plain = engine_request(make_plan({"steering": {"task": "good"}}), (1,))
    assert plain.label_bias is None


def test_a_plain_request_asks_for_nothing_more(make_plan: MakePlan) -> None:
    found = engine_request(make_plan({"details": "trace"}), (1,))
    assert (found.policy, found.variants, found.logprobs, found.trace, found.stop) == (None, None, False, False, ())
    assert (found.choice, found.acts, found.max_new_tokens) == (None, None, 16)
    assert found.sampling.greedy


def test_a_task_without_an_artifact_still_asks_for_class_probabilities(make_plan: MakePlan) -> None:
    found = engine_request(make_plan({"steering": {"task": "bare"}}), (1,))
    assert (found.policy, found.variants) == (None, ((1,), (2, 3)))


def test_a_task_that_chooses_among_labels_asks_for_a_label(make_plan: MakePlan, catalog: Catalog, good: Probe) -> None:
    """Without a budget it ends with the label, and nothing but the label is steered whatever the budget."""
    own = replace(good, task=replace(good.task, choose="labels", end=7))
    chosen = replace(catalog, latest={"good": own})
    for parameters, budget in (({}, None), ({"max_new_tokens": 5}, 5)):
        made = make_plan({"steering": {"task": "good"}, "parameters": parameters}, catalog=chosen)
        found = engine_request(made, (1,))
        assert (found.max_new_tokens, found.policy) == (budget, Policy("aa" * 32, 0.3))
        assert (found.choice, found.variants, found.acts) == (LabelChoice(own.task.variants, 7), None, None)


class Staying:
    """A caller who does not leave."""

    async def receive(self) -> Any:
        await asyncio.sleep(60)


async def test_a_generation_that_fails_holds_nothing() -> None:
    """Neither its plan nor the artifact in it, also before the garbage collector comes by."""

    class Plans(list[int]):
        pass

    held: list[weakref.ref[Plans]] = []

    async def ask() -> None:
        plans = Plans()
        held.append(weakref.ref(plans))
        future: Future[Generation] = Future()
        future.set_running_or_notify_cancel()
        asyncio.get_running_loop().call_later(0.01, future.set_exception, EngineFailed("engine: lost"))
        await _until_gone([future], Staying())  # type: ignore[arg-type]

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(EngineFailed, match="lost") as caught:
            await ask()
        del caught
        await asyncio.sleep(0.05)
        assert held[0]() is None
    finally:
        gc.enable()
