"""The page on a real socket of this machine, over the built-in model, and a headless Chromium that looks at it."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from mera_server.app import create_app
from mera_server.settings import Settings

from merasteer import demo

# No network of its own, and no sandbox: a container is one already.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]

Open = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, once the model is loaded."""
    if not (demo.model_dir() / "config.json").is_file():
        pytest.skip("the built-in demo is not built; run `mera demo build`")
    app = create_app(Settings(store=tmp_path_factory.mktemp("store")))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and httpx.get(f"{address}/health/ready").status_code != 200:
            time.sleep(0.1)
        yield address
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Any]:
    """One browser for all tests; each opens a window of its own in it."""
    playwright = pytest.importorskip("playwright.async_api", reason="no Playwright; pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def page(chromium: Any, site: str) -> AsyncIterator[Open]:
    """Opens the page: `await page(width=360, **context)`, and waits until it is ready. What its script throws, what its policy refuses
    and a request to anybody else fail the test.

    clock: the test turns it. routes: path -> who answers in the server's place.
    """
    contexts, failures = [], []

    async def opened(
        width: int = 1280,
        height: int = 900,
        ready: bool = True,
        clock: bool = False,
        routes: Any = None,
        **context: Any,
    ) -> Any:
        found = await chromium.new_context(viewport={"width": width, "height": height}, **context)
        contexts.append(found)
        tab = await found.new_page()
        tab.set_default_timeout(15_000)
        tab.on("pageerror", lambda error: failures.append(str(error)))
        tab.on("console", lambda said: failures.append(said.text) if _serious(said) else None)
        tab.on("request", lambda request: failures.append(request.url) if not _own(request.url, site) else None)
        for path, handler in (routes or {}).items():
            await tab.route(f"{site}/{path}", handler)
        if clock:
            await tab.clock.install()
        await tab.goto(site)
        if ready:
            await tab.locator("#run:enabled").wait_for()
        return tab

    yield opened
    for context in contexts:
        await context.close()
    assert not failures


def _serious(said: Any) -> bool:
    return said.type == "error" and "Failed to load resource" not in said.text  # an error status that a test asked for


def _own(url: str, site: str) -> bool:
    return url.startswith((f"{site}/", "data:"))


@pytest.fixture
def expect() -> Any:
    """Playwright's assertions, which wait. The page's policy forbids waiting for a string of script."""
    return pytest.importorskip("playwright.async_api", reason="no Playwright; pip install playwright").expect


@pytest.fixture
def run(expect: Any) -> Callable[[Any], Awaitable[None]]:
    """Presses the button, and waits until both sides have ended."""

    async def pressed(tab: Any) -> None:
        await tab.locator("#run").click()
        await expect(tab.locator("#outcome")).to_contain_text("Without steering")

    return pressed


class Fake:
    """Answers in place of the server's."""

    MARKUP = '<img src="x" onerror="document.title=1"><b>bold</b>'

    @classmethod
    def error(cls, code: str, message: str) -> str:
        return json.dumps({"error": {"code": code, "message": message}})

    @classmethod
    def token(cls, index: int, text: str, last: bool = False) -> dict[str, Any]:
        """An event of the stream."""
        trace = {"before": [0.7, 0.6, 0.5, 0.4], "after": [0.04] * 4, "shift": [0.5, 0.0, 0.02, 1.5]}
        step = {"predicted_error": {"before": 0.5, "after": 0.04}, "steered": True, "trace": trace}
        end = {"finish_reason": "length", "prompt_tokens": 3, "generated_tokens": index, "seed": None}
        counts = {"tokens": 1, "steered_tokens": 1, "cells": 4, "steered_cells": 3, "mean_shift": 0.6, "max_shift": 1.5}
        mera = {
            "task": "demo_spam", "probe": "ab", "method": "mera", "decision": "steered", "reason": None, "alpha": 0.04,
            "predicted_error": {"before": 0.5, "after": 0.04, "layer": 2, "position": "answer"}, "steering": counts,
            "guarantee": None, "answer": {"label": cls.MARKUP, "probabilities": {cls.MARKUP: 0.9, "ham": 0.1}}, "trace": None,
        }  # fmt: skip
        return {
            "index": index,
            "token": {"id": 1, "text": text, "logprob": -0.1, "special": False},
            "step": step,
            "generated_text": text if last else None,
            "details": end if last else None,
            "mera": mera if last else None,
        }

    @classmethod
    def events(cls, *told: dict[str, Any]) -> str:
        return "".join(f"data:{json.dumps(one)}\n\n" for one in told)

    @classmethod
    def answered(cls, status: int = 200, body: str = "", kind: str = "application/json", **headers: str) -> Any:
        """A handler that answers for the server."""

        async def handle(route: Any) -> None:
            await route.fulfill(status=status, body=body, headers={"Content-Type": kind, **headers})

        return handle

    @classmethod
    def streamed(cls, *told: dict[str, Any]) -> Any:
        return cls.answered(body=cls.events(*told), kind="text/event-stream")


@pytest.fixture(scope="session")
def fake() -> type[Fake]:
    return Fake
