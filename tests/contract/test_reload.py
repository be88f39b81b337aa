"""New artifacts without a restart: what runs keeps its policy, what comes next gets what is there, nothing is dropped or leaks."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.bridge import complete
from mera_server.loading import load
from mera_server.resolve import plan
from mera_server.schemas import GenerateBody
from mera_server.settings import Settings
from mera_server.shelf import identity_of
from starlette.requests import Request

from merasteer.errors import UnknownProbe
from merasteer.store import plant
from merasteer.types import ServedTask

Ready = Callable[[FastAPI], FastAPI]
TASK = "demo_desk_a"
STEERED = {"task": TASK, "alpha": 0.02, "positions": "all"}
ROWS = 24
GREEDY: Mapping[str, float] = {}
HOT = {"temperature": 5.0, "seed": 3}  # text that does not come to an end by itself


class World:
    """A server over a store of its own, and what may be done to the store."""

    def __init__(self, app: FastAPI, store: Path) -> None:
        self.app, self.runtime, self.store = app, app.state.runtime, store
        self.engine = self.runtime.serving().engine
        self.identity = identity_of(self.engine.loaded)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    @property
    def folder(self) -> Path:
        return self.store / self.identity.slug / TASK

    def plant(self, seed: int) -> str:
        """A random artifact, the task's default from now on; its digest's beginning."""
        task = self.runtime.serving().catalog.task(TASK)
        assert isinstance(task, ServedTask)
        return plant(self.store, self.identity, task, "residual", seed).name

    def point(self, digest: str) -> None:
        beside = self.folder / ".t"
        beside.write_text(digest, encoding="ascii")
        beside.replace(self.folder / "latest")

    async def reload(self) -> dict[str, Any]:
        response = await self.http.post("/probes/reload")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def ask(self, tokens: int = 6, sampling: Mapping[str, float] = GREEDY, **steering: Any) -> dict[str, Any]:
        parameters = {"max_new_tokens": tokens, **sampling}
        body = {"inputs": {"text": "hello"}, "steering": {**STEERED, **steering}, "parameters": parameters}
        response = await self.http.post("/generate", json=body)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def metrics(self) -> str:
        return (await self.http.get("/metrics")).text

    def free_rows(self) -> int:
        """Rows of vectors that nobody holds, once what nobody refers to is gone."""
        gc.collect()
        self.runtime.serving().shelf.changed()
        return len(self.engine._steering.tables["residual"]._free)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two answers agree; float sums depend in the last bits on who else is in the batch."""
    first, second = (answer["mera"] for answer in (one, other))
    for name, value in first["steering"].items():
        assert second["steering"][name] == pytest.approx(value, rel=1e-3)
    assert [one[name] for name in ("generated_text", "details")] == [
        other[name] for name in ("generated_text", "details")
    ]
    return bool([first[name] for name in ("probe", "decision")] == [second[name] for name in ("probe", "decision")])


@pytest.fixture(scope="module")
def only(settings: Settings, tmp_path_factory: pytest.TempPathFactory, ready_app: Ready) -> Iterator[World]:
    """An engine with few rows for vectors, and an empty store. Nobody else may hold a catalog: so it is loaded in the app."""
    given = {
        "store": tmp_path_factory.mktemp("own"),
        "max_policies": ROWS,
        "cache_tokens": 4096,
        "reload_seconds": 0.05,
    }
    app = ready_app(create_app(changed := settings.model_copy(update=given), loader=load))
    yield World(app, changed.store)
    app.state.runtime.stop()


@pytest.fixture
def world(only: World) -> Iterator[World]:
    """The store is empty again at the end."""
    yield only
    shutil.rmtree(only.folder, ignore_errors=True)
    only.runtime.reload()


async def test_a_new_artifact_is_served_and_shown(world: World) -> None:
    before = await world.ask()
    digest = world.plant(1)
    assert (await world.ask())["mera"]["probe"] == before["mera"]["probe"]
    told = await world.reload()
    assert [found[:12] for found in told["added"]] == [digest]
    assert (told["removed"], told["latest"][TASK]) == ([], told["added"][0])
    after = await world.ask()
    assert after["mera"]["probe"] == told["added"][0]
    assert after["mera"]["decision"] == "steered"
    tasks = (await world.http.get("/tasks")).json()["tasks"]
    assert next(task["probe"] for task in tasks if task["name"] == TASK) == told["added"][0]
    probes = (await world.http.get("/probes")).json()["probes"]
    assert told["loaded"] == len([probe for probe in probes if probe["status"] == "loaded"])
    assert (await world.reload())["added"] == []


async def test_metrics_follow_and_stale_ones_are_gone(world: World) -> None:
    digest = world.plant(2)
    assert "mera_probes_rejected 0.0" in await world.metrics()
    full = (await world.reload())["added"][0]
    assert f'probe="{full}"' in await world.metrics()
    weights = world.folder / digest / "probe.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    told = await world.reload()
    assert (told["removed"], told["rejected"]) == ([full], 1)
    text = await world.metrics()
    assert f'probe="{full}"' not in text
    assert "mera_probes_rejected 1.0" in text
    assert 'mera_certified_gain_lower_bound{task="demo_spam"}' in text
    assert f'mera_certified_gain_lower_bound{{task="{TASK}"}}' not in text
    with pytest.raises(UnknownProbe, match="was rejected"):
        world.runtime.serving().catalog.probe(full)


async def test_what_runs_keeps_its_policy_and_its_row_until_it_has_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = world.free_rows()
    digest = world.plant(3)
    await world.reload()
    alone = await world.ask(60, HOT)
    assert alone["mera"]["probe"][:12] == digest
    assert alone["details"]["generated_tokens"] > 40
    step, gate, steps = world.engine.on_step, threading.Event(), 0

    def held(found: Any) -> None:
        nonlocal steps
        steps += 1
        if steps > 20:
            gate.wait(30)
        step(found)

    monkeypatch.setattr(world.engine, "on_step", held)
    running = asyncio.create_task(world.ask(60, HOT))
    while world.engine.stats().running == 0:
        await asyncio.sleep(0.001)
    shutil.rmtree(world.folder)
    told = await world.reload()
    assert len(told["removed"]) == 1
    assert not running.done()
    assert world.free_rows() < rows
    gate.set()
    other = await world.ask()
    assert other["mera"]["probe"] != alone["mera"]["probe"]
    found = await running
    assert same(found, alone)
    del running
    assert world.free_rows() == rows


async def test_what_was_planned_before_a_reload_is_served_behind_it(world: World) -> None:
    rows = world.free_rows()
    digest = world.plant(4)
    await world.reload()
    body = GenerateBody.model_validate({"inputs": {"text": "hello"}, "steering": STEERED})
    planned = plan(body, world.runtime.serving().catalog, world.runtime.limits)
    shutil.rmtree(world.folder)
    await world.reload()
    world.runtime.serving().shelf.changed()  # what nobody holds leaves here

    async def waiting() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "headers": []}, waiting)
    (found,) = await complete(world.runtime, [planned], request)
    assert found.mera.probe is not None
    assert found.mera.probe[:12] == digest
    assert found.mera.decision == "steered"
    del planned, found
    assert world.free_rows() == rows


async def test_the_default_is_switched_under_load_and_no_answer_is_mixed(world: World) -> None:
    digests = [world.plant(seed) for seed in (5, 6)]
    await world.reload()
    expected = {digest: await world.ask(12, probe=digest) for digest in digests}
    assert expected[digests[0]]["mera"]["steering"] != expected[digests[1]]["mera"]["steering"]
    done, seen = False, []

    async def caller() -> None:
        while not done:
            found = await world.ask(12)
            seen.append(found["mera"]["probe"][:12])
            assert same(found, expected[seen[-1]])

    callers = [asyncio.create_task(caller()) for _ in range(4)]
    for turn in range(12):
        world.point(digests[turn % 2])
        told = await world.reload()
        assert told["latest"][TASK][:12] == digests[turn % 2]
        assert (await world.ask(12))["mera"]["probe"][:12] == digests[turn % 2]
    done = True
    await asyncio.gather(*callers)
    assert set(seen) == set(digests)


async def test_a_full_table_is_a_clear_rejection_and_never_a_crash(world: World) -> None:
    digests = [world.plant(seed) for seed in range(100, 102 + ROWS)]
    told = await world.reload()
    assert told["rejected"] > 0
    assert world.free_rows() == 0
    probes = (await world.http.get("/probes")).json()["probes"]
    reasons = {probe["reason"] for probe in probes if probe["status"] == "rejected"}
    assert len(reasons) == told["rejected"]
    assert all(f"all {ROWS} rows" in reason and "raise max_policies" in reason for reason in reasons)
    assert told["latest"][TASK][:12] == digests[-1]  # the default is served before others
    assert f"mera_probes_rejected {float(told['rejected'])}" in await world.metrics()
    refused = next(digest for digest in digests if any(digest in reason for reason in reasons))
    body = {"inputs": {"text": "hello"}, "steering": {**STEERED, "probe": refused}}
    response = await world.http.post("/generate", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_probe")
    assert "raise max_policies" in response.json()["error"]["message"]
    for digest in digests[:-1]:
        shutil.rmtree(world.folder / digest)
    assert (await world.reload())["rejected"] == 0


async def test_a_new_default_has_room_beside_a_table_full_of_baselines(world: World) -> None:
    for seed in range(200, 216):
        world.plant(seed)
    await world.reload()
    assert world.free_rows() == ROWS // 8
    digest = world.plant(300)
    assert (await world.reload())["latest"][TASK][:12] == digest


async def test_a_store_that_cannot_be_read_changes_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    digest = world.plant(7)
    await world.reload()
    away = world.store.with_name("away")
    world.store.rename(away)
    try:
        response = await world.http.post("/probes/reload")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
        assert "is served on" in response.json()["error"]["message"]
        assert str(world.store) not in response.text
        world.runtime._look_at_files()
        assert "cannot be read" in caplog.text
        assert (await world.ask())["mera"]["probe"][:12] == digest
    finally:
        away.rename(world.store)
    assert (await world.reload())["removed"] == []


async def test_the_watch_sees_what_was_published(world: World) -> None:
    watching = asyncio.create_task(world.runtime.watch())
    try:
        for seed in (8, 9):
            digest = world.plant(seed)
            for _ in range(400):
                if (await world.ask(1))["mera"]["probe"][:12] == digest:
                    break
                await asyncio.sleep(0.01)
            assert (await world.ask(1))["mera"]["probe"][:12] == digest
    finally:
        watching.cancel()


async def test_the_watch_reads_nothing_while_nothing_changes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.plant(10)
    await world.reload()
    gc.collect()
    world.runtime.reload(only_if_changed=True)
    shelf = world.runtime.serving().shelf
    monkeypatch.setattr(type(shelf), "read", lambda *_: pytest.fail("it was read"))
    for _ in range(3):
        assert world.runtime.reload(only_if_changed=True) is None


async def test_a_stream_that_has_ended_holds_no_artifact(world: World) -> None:
    rows = world.free_rows()
    world.plant(11)
    await world.reload()
    gc.disable()  # nor until the collector comes by
    try:
        body = {"inputs": {"text": "hello"}, "steering": STEERED}
        assert (await world.http.post("/generate_stream", json=body)).status_code == 200
        shutil.rmtree(world.folder)
        await world.reload()
        world.runtime.serving().shelf.changed()
        assert len(world.engine._steering.tables["residual"]._free) == rows
    finally:
        gc.enable()
