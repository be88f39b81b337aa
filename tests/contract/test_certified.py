"""What was tested is what is served: canaries, other conditions, and numbers that are not finite, over HTTP on the built-in model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import mera_server.canaries
import pytest
import torch
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.canaries import Watch
from mera_server.loading import Serving, load
from mera_server.resolve import Limits, Plan, plan
from mera_server.schemas import GenerateBody
from mera_server.settings import Settings

from merasteer import demo
from merasteer.errors import InvalidInput, Overloaded
from merasteer.types import GenerationRequest

from ..forking import Forker
from .conftest import ready

TASK = "demo_spam"
FIELDS = {"desk": "B", "text": "Win a holiday for two. Enter your code 2220 online."}
STEERED = {"inputs": FIELDS, "steering": {"task": TASK}}
OFF = "the model does not behave as tested: "


def settings_of(store: Path) -> Settings:
    """Whose weights are where the model says, and whose prompts are computed anew each time."""
    return Settings(store=store, pack_weights=False, share_prefixes=False, max_waiting=64)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A model of its own, whose weights a test may change in memory, behind every digest that was taken of its files."""
    if not (demo.model_dir() / "config.json").is_file():
        pytest.skip("the built-in demo is not built; run `mera demo build`")
    found = load(settings_of(tmp_path_factory.mktemp("store")))
    yield found
    found.engine.stop()


@pytest.fixture
def fresh(world: Serving) -> FastAPI:
    """An application that has replayed nothing yet."""
    return ready(create_app(loader=lambda _: world))


@pytest.fixture
async def client(fresh: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(fresh), base_url="http://test") as found:
        yield found


@contextlib.contextmanager
def changed(world: Serving, change: Callable[[Any], Any]) -> Iterator[None]:
    """The model changed in memory, and as it was again afterwards."""
    model = world.engine.loaded.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        undo = change(model)
    try:
        yield
    finally:
        if undo is not None:
            undo.remove()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.copy_(before[name])


def scaled(model: Any) -> None:
    for parameter in model.model.layers[1].parameters():
        parameter.mul_(1.02)


def biased(model: Any) -> Any:
    return model.model.norm.register_forward_hook(lambda _module, _inputs, output: output + 0.05)


def broken(model: Any) -> None:
    model.lm_head.weight[0].fill_(float("nan"))


async def asked(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/generate", json={**STEERED, **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["mera"]
    return found


async def here(client: httpx.AsyncClient) -> dict[str, Any]:
    row = next(row for row in (await client.get("/tasks")).json()["tasks"] if row["name"] == TASK)
    found: dict[str, Any] = (await client.get(f"/probes/{row['probe']}")).json()["here"]
    assert row["certified"] is found["certified"]
    return found


def planned(world: Serving) -> Plan:
    return plan(GenerateBody.model_validate(STEERED), world.catalog, Limits())


# ------------------------------------------------------------------------------------------------ canaries


async def test_they_are_replayed_before_the_first_certified_answer_and_once(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed = []
    real = mera_server.canaries.asked
    monkeypatch.setattr(mera_server.canaries, "asked", lambda *given: replayed.append(1) or real(*given))
    assert await here(client) == {"certified": True, "why": None, "canaries": "pending"}
    for steering in ({"task": TASK, "method": "none"}, {"task": TASK, "alpha": 0.4}, {"task": TASK, "layers": [1]}):
        assert (await asked(client, steering=steering))["guarantee"]["certified"] is False
    assert replayed == []  # nobody relied on the certificate
    together = await asyncio.gather(*(asked(client) for _ in range(6)))
    assert all(mera["guarantee"]["certified"] for mera in together)
    assert len(replayed) == 1
    assert (await asked(client))["guarantee"]["certified"]
    assert (await client.post("/probes/reload")).status_code == 200
    assert (await asked(client))["guarantee"]["certified"]
    assert len(replayed) == 1
    assert await here(client) == {"certified": True, "why": None, "canaries": "passed"}


@pytest.mark.parametrize("change", [scaled, biased], ids=lambda one: one.__name__)
async def test_a_model_that_changed_behind_its_digest_loses_its_certificate(
    world: Serving, client: httpx.AsyncClient, change: Callable[[Any], Any]
) -> None:
    with changed(world, change):
        mera = await asked(client)
        assert (mera["decision"], mera["reason"], mera["alpha"]) == ("abstained", "conditions", None)
        assert mera["guarantee"]["certified"] is False
        assert mera["guarantee"]["why"].startswith(f"{OFF}canary ")
        found = await here(client)
        assert (found["certified"], found["canaries"]) == (False, "failed")
        assert found["why"].startswith(OFF)
        assert (await client.post("/probes/reload")).status_code == 200
        assert await here(client) == found
        again = await asked(client)
        assert (again["reason"], again["guarantee"]["why"]) == ("conditions", mera["guarantee"]["why"])
        sampled = await asked(client, parameters={"temperature": 1.0})
        assert sampled["guarantee"]["why"].startswith(OFF)
        told = await asked(client, steering={"task": TASK, "alpha": 0.01})
        assert (told["alpha"], told["reason"], told["guarantee"]["certified"]) == (0.01, None, False)
        assert f"{OFF}canary" in told["guarantee"]["why"]
        classified = await client.post("/classify", json={"inputs": [FIELDS, FIELDS], "task": TASK})
        assert classified.status_code == 200, classified.text
        metrics = (await client.get("/metrics")).text
        [info] = [line for line in metrics.splitlines() if line.startswith("mera_probe_info{") and f'"{TASK}"' in line]
        assert 'certified="false"' in info
        assert f'mera_certified_gain_lower_bound{{task="{TASK}"}}' not in metrics


async def test_canaries_without_an_answer_end_the_certificate_too(world: Serving, client: httpx.AsyncClient) -> None:
    with changed(world, broken):
        response = await client.post("/generate", json=STEERED)
        assert (response.status_code, response.json()["error"]["code"]) == (500, "non_finite")
        found = await here(client)
        assert found["why"].startswith(f"{OFF}a canary gets no answer: engine: ")
    assert "mera_non_finite_total 1.0" in (await client.get("/metrics")).text


async def test_a_caller_who_leaves_while_they_are_replayed_breaks_nothing(
    world: Serving, client: httpx.AsyncClient
) -> None:
    with world.engine.held():
        leaving = asyncio.create_task(client.post("/generate", json=STEERED))
        deadline = time.monotonic() + 10
        while world.engine.stats().waiting < 16 and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving
        waiting = asyncio.create_task(asked(client))
        await asyncio.sleep(0.02)
    assert (await waiting)["guarantee"]["certified"]
    assert (await here(client))["canaries"] == "passed"


async def test_a_full_queue_is_told_and_the_next_request_replays_them(world: Serving) -> None:
    watch = Watch(world.engine, lambda *_: None)
    room = (world.engine.config.max_waiting or 0) + world.engine.config.max_requests
    digest = world.catalog.latest[TASK].digest
    with world.engine.held():
        full: list[Future[Any]] = [world.engine.submit(GenerationRequest((1,), 1)) for _ in range(room)]
        with pytest.raises(Overloaded):
            await asyncio.wait_for(watch.settle([planned(world)]), 20)
        assert (watch.state(digest), watch.failed) == ("pending", {})
    for one in full:
        one.result(60)
    [found] = await watch.settle([planned(world)])
    assert (found.decision, found.why, watch.state(digest)) == (None, (), "passed")


async def test_another_thread_count_and_company_pass(world: Serving) -> None:
    threads = torch.get_num_threads()
    digest = world.catalog.latest[TASK].digest
    try:
        torch.set_num_threads(threads + 1)
        company = [world.engine.submit(GenerationRequest(tuple(range(1, 60)), 60)) for _ in range(8)]
        watch = Watch(world.engine, lambda *_: None)
        await watch.settle([planned(world)])
        assert watch.state(digest) == "passed"
    finally:
        torch.set_num_threads(threads)
        for one in company:
            one.cancel()


# ------------------------------------------------------------------------------------------------ --require-certified


def required(world: Serving) -> FastAPI:
    app = create_app(Settings(require_certified=True), loader=lambda _: world)
    app.state.runtime.start()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and app.state.runtime.failure is None and app.state.runtime._serving is None:
        time.sleep(0.01)
    return app


async def test_a_start_that_requires_it_has_replayed_them(world: Serving) -> None:
    app = required(world)
    assert app.state.runtime.failure is None
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await here(client))["canaries"] == "passed"


def test_a_start_that_requires_it_fails_where_a_certificate_does_not_hold(tmp_path: Path) -> None:
    own = load(settings_of(tmp_path))
    with changed(own, biased):
        failure = required(own).state.runtime.failure
    assert isinstance(failure, InvalidInput)
    said = rf"require-certified: {TASK}: {OFF}canary \d is off by [^;\n]+; test again with mera recertify, or start without it"
    assert re.fullmatch(said, str(failure)), failure
    with pytest.raises(Exception, match="stopped"):  # the engine does not outlive the start
        own.engine.submit(GenerationRequest((1,), 1))


def test_on_the_command_line_it_is_one_line(tmp_path: Path, forker: Forker) -> None:
    given = ["serve", "--require-certified", "--dtype", "bfloat16", "--store", str(tmp_path), "--port", "0"]
    process = forker.start("-m mera_server", given, dict(os.environ))
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    [line] = [line for line in told.splitlines() if "require-certified" in line]
    assert f"{TASK}: the conditions of its test do not hold here: dtype float32 then, bfloat16 here; test again" in line


# ------------------------------------------------------------------------------------------------ other conditions


async def test_another_dtype_abstains_and_says_so(tmp_path: Path) -> None:
    """The certificate of the built-in model speaks of float32."""
    own = load(Settings(store=tmp_path, dtype="bfloat16"))
    app = ready(create_app(loader=lambda _: own))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        mera = await asked(client)
        assert (mera["decision"], mera["reason"], mera["alpha"]) == ("abstained", "conditions", None)
        why = "the conditions of its test do not hold here: dtype float32 then, bfloat16 here"
        assert (mera["guarantee"]["certified"], mera["guarantee"]["why"]) == (False, why)
        assert await here(client) == {"certified": False, "why": why, "canaries": "pending"}
        told = await asked(client, steering={"task": TASK, "alpha": 0.01})
        assert (told["decision"] in ("steered", "not_needed"), told["guarantee"]["certified"]) == (True, False)
    own.engine.stop()


@pytest.mark.parametrize(("task", "reason"), [(None, "other_prompt"), (TASK, None)])
async def test_a_default_task_leaves_other_prompts_alone(world: Serving, task: str | None, reason: str | None) -> None:
    app = ready(create_app(Settings(default_task=TASK), loader=lambda _: world))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        poem = "Say it in verse: the harbour at dawn"
        mera = await asked(client, inputs=poem, steering={"task": task})
        assert (mera["reason"], mera["guarantee"]["certified"]) == (reason, False)
        assert (mera["steering"]["cells"] == 0) is (reason is not None)
        own = await asked(client, steering={"task": task})
        assert (own["reason"], own["guarantee"]["certified"]) == (None, True)


async def test_what_was_tested_is_covered_and_no_token_behind_it_is_moved(client: httpx.AsyncClient) -> None:
    """`last` is the tested position of an answer of one token, and the artifact's own α is no other one."""
    plain = await asked(client)
    alpha = (await client.get(f"/probes/{plain['probe']}")).json()["alpha"]
    for steering in ({"positions": "last"}, {"alpha": alpha}, {"positions": "generation", "method": "mera"}):
        mera = await asked(client, steering={"task": TASK, **steering})
        assert mera["guarantee"]["certified"]
        assert mera["steering"] == pytest.approx(plain["steering"], abs=1e-6)
    longer = await asked(client, parameters={"max_new_tokens": 12})
    assert longer["guarantee"]["certified"]
    assert longer["steering"]["tokens"] == plain["steering"]["tokens"]


# ------------------------------------------------------------------------------------------------ finite or refused


@pytest.fixture
def spoilt(world: Serving) -> Iterator[str]:
    """A word that the model makes something of that is not finite."""
    word, others = "umbrella", set(world.engine.encode(json.dumps(FIELDS) + " Is this ham or spam? Answer as desk B"))
    bad = torch.tensor(sorted(set(world.engine.encode(f" {word}")) - others))

    def spoil(model: Any) -> Any:
        def hook(_module: Any, inputs: Any, output: Any) -> Any:
            return output.masked_fill(torch.isin(inputs[0], bad)[..., None], float("nan"))

        return model.get_input_embeddings().register_forward_hook(hook)

    with changed(world, spoil):
        yield word


async def test_one_bad_text_of_three_fails_the_call_and_no_other(
    world: Serving, client: httpx.AsyncClient, spoilt: str
) -> None:
    bad = {**FIELDS, "text": f"Bring the {spoilt}."}
    expected = await asked(client)
    batch, fine, refused = await asyncio.gather(
        client.post("/classify", json={"task": TASK, "inputs": [FIELDS, bad, FIELDS]}),
        client.post("/classify", json={"task": TASK, "inputs": [FIELDS, FIELDS]}),
        client.post("/generate", json={"inputs": bad, "steering": {"task": TASK, "alpha": 0.01, "positions": "all"}}),
    )
    for response in (batch, refused):
        assert (response.status_code, response.json()["error"]["code"]) == (500, "non_finite"), response.text
        assert "null" not in response.text
    assert [one["label"] for one in fine.json()["results"]] == [expected["answer"]["label"]] * 2
    metrics = (await client.get("/metrics")).text
    counted = re.search(r"^mera_non_finite_total (\d+)", metrics, re.MULTILINE)
    assert counted is not None
    assert int(counted[1]) == 2
    assert world.engine.failure is None


async def test_a_stream_of_it_is_an_error_of_its_own(client: httpx.AsyncClient, spoilt: str) -> None:
    bad = {"inputs": {**FIELDS, "text": f"Bring the {spoilt}."}, "steering": {"task": TASK}}
    response = await client.post("/generate_stream", json=bad)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "non_finite"), response.text


async def test_openai_routes_tell_it_as_well(client: httpx.AsyncClient, spoilt: str) -> None:
    response = await client.post("/v1/completions", json={"model": "mera-demo", "prompt": f"Bring the {spoilt} along"})
    assert response.status_code == 500
    assert "not finite" in response.text


# ------------------------------------------------------------------------------------------------ many artifacts


@pytest.mark.slow
def test_a_hundred_artifacts_cost_the_start_two_seconds_at_most(tmp_path: Path) -> None:
    """Their canaries wait for the first request that relies on them."""
    from .test_methods import publish

    one, many = tmp_path / "one", tmp_path / "many"
    publish(one, "copy_0", "mera", True, None)
    for number in range(100):
        publish(many, f"copy_{number}", "mera", True, None)
    took = []
    for store in (one, many):
        started = time.monotonic()
        found = load(Settings(store=store, max_policies=256))
        took.append(time.monotonic() - started)
        found.engine.stop()
    assert len([name for name in found.catalog.latest if name.startswith("copy_")]) == 100
    assert took[1] - took[0] < 2.0, f"one artifact {took[0]:.2f} s, a hundred {took[1]:.2f} s"
