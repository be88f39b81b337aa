"""The application in process over the built-in model and its artifacts, beside a store with one altered artifact."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.loading import Serving, load
from mera_server.process import config_of
from mera_server.settings import Settings

from merasteer import demo
from merasteer.errors import NotReady

from ..forking import Forker

UNCERTIFIED = "demo_desk_a"
PROMPT = 'Message: "Win a holiday for two. Enter your code 2220 online." Is this ham or spam? Answer as desk B'


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store that holds a copy of a demo artifact with one byte changed."""
    if not (demo.model_dir() / "config.json").is_file():
        pytest.skip("the built-in demo is not built; run `mera demo build`")
    store = tmp_path_factory.mktemp("store")
    found = next(path.parent for path in sorted(demo.store_dir().glob(f"*/{UNCERTIFIED}/*/manifest.json")))
    copy = store / found.relative_to(demo.store_dir())
    shutil.copytree(found, copy)
    probe = copy / "probe.safetensors"
    probe.write_bytes(probe.read_bytes()[:-1] + b"\x7f")
    return Settings(store=Path(store), max_body_bytes=20_000, max_new_tokens_limit=900, max_waiting=256)


@pytest.fixture(scope="session")
def serving(settings: Settings) -> Iterator[Serving]:
    """The engine and the catalog, shared by all tests."""
    found = load(settings)
    yield found
    found.engine.stop()


def ready(app: FastAPI) -> FastAPI:
    """The application once it has loaded."""
    app.state.runtime.start()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(NotReady):  # the metrics tell of the model a moment before it is served
            app.state.runtime.serving()
            if app.state.runtime.metrics.text().count(b"mera_model_info{"):
                return app
        time.sleep(0.01)
    raise TimeoutError("the application did not load")


@pytest.fixture(scope="session")
def ready_app() -> Callable[[FastAPI], FastAPI]:
    """`ready`, for applications that a test makes itself."""
    return ready


@pytest.fixture
def app(settings: Settings, serving: Serving) -> FastAPI:
    """A fresh application (its metrics are at zero) over the shared engine."""
    return ready(create_app(settings, loader=lambda _: serving))


@pytest.fixture(scope="session")
def mera_serve(forker: Forker) -> Callable[..., AbstractContextManager[tuple[Any, str]]]:
    """`mera serve` as a process, and the address that it says it listens on; with `code` a program that ends in it.

    fresh: in an interpreter of its own, which imports everything as a user's does.
    """

    @contextmanager
    def server(*arguments: str, code: str = "", fresh: bool = False, **environ: str) -> Iterator[tuple[Any, str]]:
        given = {**os.environ, **environ}
        if fresh:
            program = ["-c", code] if code else ["-m", "mera_server", "serve"]
            process: Any = subprocess.Popen(
                [sys.executable, *program, *arguments], stderr=subprocess.PIPE, text=True, env=given
            )
        else:
            command = (code, arguments) if code else ("-m mera_server", ("serve", *arguments))
            process = forker.start(*command, given)
        try:
            found = None
            while found is None and (line := process.stderr.readline()):
                found = re.search(r"listening on (https?://[^\s\"]+)", line)
            assert found is not None
            yield process, found[1]
        finally:
            process.kill()
            process.communicate()

    return server


@pytest.fixture(scope="session")
def listening() -> Callable[[FastAPI], AbstractContextManager[tuple[str, int]]]:
    """An app on a port, as `mera serve` has it, and its address; what is still open at the end is cut off."""

    @contextmanager
    def served(app: FastAPI) -> Iterator[tuple[str, int]]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            config = config_of(app)
            config.lifespan = "off"
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            yield listener.getsockname()
            server.should_exit = server.force_exit = True
            thread.join(20)
            assert not thread.is_alive()

    return served


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as found:
        yield found


@pytest.fixture
def address(app: FastAPI) -> Iterator[str]:
    """The application on a real socket of this machine, for the clients that people have."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
async def ask(client: httpx.AsyncClient) -> Any:
    """Posts to /generate; the answer's body, which must be a 200."""

    async def post(inputs: Any = PROMPT, task: str | None = None, **body: Any) -> dict[str, Any]:
        if task is not None:
            body["steering"] = {"task": task, **body.get("steering", {})}
        response = await client.post("/generate", json={"inputs": inputs, **body})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    return post


@pytest.fixture
def ai(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture
async def aio(address: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as found:
        yield found
