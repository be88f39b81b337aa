"""What operators rely on: a start that can be stopped, readiness that means what was required, and logs without noise."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.catalog import Catalog
from mera_server.loading import Serving, load
from mera_server.logs import set_up
from mera_server.requirements import lacking
from mera_server.settings import Settings
from mera_server.shelf import identity_of

from merasteer.store import plant
from merasteer.types import ServedTask

from ..forking import Forker

Ready = Callable[[FastAPI], FastAPI]
TASK, OTHER = "demo_spam", "demo_desk_a"
# A load that C++ waits for, whose Python end the interpreter's own end must not find.
LOADING = """
import sys, time
import torch
import mera_server.loading
class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x
    @staticmethod
    def backward(ctx, gradient):
        print("it loads", file=sys.stderr, flush=True)
        for _ in range(3000):
            time.sleep(0.01)
        return gradient
mera_server.loading.load = lambda settings: Slow.apply(torch.ones(1, requires_grad=True)).backward()
from mera_server.start import main
sys.exit(main())
"""


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


# ------------------------------------------------------------------------------------------------ starting


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_server_that_is_stopped_while_it_loads_ends_in_good_order(
    forker: Forker, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    process = forker.start(LOADING, ["serve", "--port", "0", "--store", str(tmp_path)], dict(os.environ))
    while "it loads" not in (line := process.stderr.readline()):
        assert line
    process.send_signal(sent)
    _, told = process.communicate(20)
    assert process.returncode == code
    assert "stopped while the model was loading" in told
    assert not [word for word in ("terminate called", "Traceback", "ERROR") if word in told]


def test_a_store_that_is_not_there_ends_the_start_in_one_line(forker: Forker, tmp_path: Path) -> None:
    given = ["serve", "--port", "0", "--store", str(tmp_path / "absent")]
    process = forker.start("-m mera_server", given, dict(os.environ))
    _, told = process.communicate(20)
    assert process.returncode == 2
    assert told.startswith("mera: store: no such folder")
    assert told.count("\n") == 1


# ------------------------------------------------------------------------------------------------ what is required


@pytest.fixture(scope="module")
def own(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server over an empty store: the demo's artifacts alone."""
    found = load(settings.model_copy(update={"store": tmp_path_factory.mktemp("own"), "cache_tokens": 4096}))
    yield found
    found.engine.stop()


async def test_a_server_is_not_ready_before_the_artifacts_that_it_requires_are_there(
    settings: Settings, own: Serving, ready_app: Ready
) -> None:
    digest = own.catalog.latest[TASK].digest
    for required, says in (
        ((), None),
        ((TASK,), None),
        ((f"{TASK}@{digest[:12]}", OTHER), None),
        ((TASK, "absent"), "require: absent: no artifact of this task is served; publish one to the store"),
        ((f"{TASK}@ffff",), f"require: {TASK}@ffff: {digest[:12]} is this task's default artifact; publish"),
    ):
        app = ready_app(create_app(settings.model_copy(update={"require": required}), loader=lambda _: own))
        async with client_of(app) as client:
            answer = await client.get("/health/ready")
            assert answer.status_code == (200 if says is None else 503)
            assert says is None or answer.json()["error"]["message"].startswith(says)
            body = {"inputs": "Message:", "parameters": {"max_new_tokens": 1}}
            assert (await client.post("/generate", json=body)).status_code == 200  # whoever insists is answered


async def test_it_becomes_ready_when_the_artifact_is_published(
    settings: Settings, ready_app: Ready, tmp_path: Path
) -> None:
    given = {"store": tmp_path, "require": ("mine",), "cache_tokens": 4096, "reload_seconds": 0}
    app = ready_app(create_app(settings.model_copy(update=given), loader=load))
    runtime = app.state.runtime
    try:
        async with client_of(app) as client:
            assert (await client.get("/health/ready")).status_code == 503
            task = runtime.serving().catalog.task(OTHER)
            assert isinstance(task, ServedTask)
            identity = identity_of(runtime.serving().engine.loaded)
            mine = ServedTask(**{**vars(task), "name": "mine"})
            plant(tmp_path, identity, mine, "residual", 1)
            assert (await client.post("/probes/reload")).status_code == 200
            assert (await client.get("/health/ready")).status_code == 200
            shutil.rmtree(tmp_path / identity.slug)
            (tmp_path / identity.slug).mkdir()
            assert (await client.post("/probes/reload")).status_code == 200
            assert (await client.get("/health/ready")).status_code == 503
    finally:
        runtime.stop()


def test_certificates_that_are_required_must_hold(own: Serving) -> None:
    catalog = own.catalog
    assert catalog.latest[TASK].guaranteed
    assert lacking(catalog, (), True) is None
    assert lacking(catalog, (TASK,), True) is None
    why = lacking(catalog, (OTHER,), True)
    assert why is not None
    assert why.endswith("is not certified here (it passed no test); see mera recertify")
    assert lacking(Catalog(1), (), True) == "require-certified: no task has a certified artifact here"
    assert lacking(Catalog(1), (), False) is None


async def test_a_certificate_that_is_withdrawn_ends_readiness_where_certified_is_required(
    settings: Settings, own: Serving, ready_app: Ready
) -> None:
    app = ready_app(create_app(settings.model_copy(update={"require_certified": True}), loader=lambda _: own))
    runtime = app.state.runtime
    async with client_of(app) as client:
        assert (await client.get("/health/ready")).status_code == 200
        runtime._withdraw(own.catalog.latest[TASK].digest, "it behaves otherwise")
        answer = await client.get("/health/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert answer.json()["error"]["message"] == f"require-certified: {TASK}: it behaves otherwise"


# ------------------------------------------------------------------------------------------------ logs


async def test_a_refusal_during_a_drain_is_no_error_of_the_server(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    app.state.runtime.flights.draining = True
    async with client_of(app) as client:
        for path in ("/generate", "/v1/completions", "/classify"):
            answer = await client.post(path, json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            assert answer.headers["retry-after"]
        assert (await client.get("/health/ready")).status_code == 503
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = before, level
    logging.captureWarnings(False)


@pytest.mark.parametrize("checks", [False, True])
async def test_health_checks_and_scrapes_have_no_line_unless_they_are_wanted(
    app: FastAPI, checks: bool, capsys: pytest.CaptureFixture[str], logging_as_it_was: None
) -> None:
    set_up("info", "text", checks=checks)
    asked: list[tuple[str, Any]] = []
    async with client_of(app) as client:
        for path in ("/health/live", "/health/ready", "/metrics", "/info", "/nowhere"):
            asked.append((path, (await client.get(path)).status_code))
        asked.append(("/health/live", (await client.post("/health/live")).status_code))
    lines = [line for line in capsys.readouterr().err.splitlines() if "mera.access" in line]
    assert [status for _, status in asked] == [200, 200, 200, 200, 404, 405]
    assert len(lines) == (6 if checks else 3)
    assert all("status=200" in line for line in lines if "route=/metrics" in line)
    assert [line for line in lines if "status=405" in line]
