"""How pages are held to the truth: their blocks, and the comparison of what is shown with what comes back."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from mera_server.app import create_app
from mera_server.settings import Settings

from merasteer import demo

REST = "…"
WHENEVER = {"created"}  # fields whose values are of the moment
_BLOCK = re.compile(r"(.*?)```(\w+)\n(.*?)```\n(?:\n```(json|text)\n(.*?)```)?", re.DOTALL)


class Block(NamedTuple):
    """A fenced block, the text before it, and the block of output that may stand right behind it (kind and text)."""

    before: str
    language: str
    code: str
    kind: str
    output: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The built-in model on a free loopback port, ready."""
    if not (demo.model_dir() / "config.json").is_file():
        pytest.skip("the built-in demo is not built; run `mera demo build`")
    app = uvicorn.Server(
        uvicorn.Config(create_app(Settings(store=tmp_path_factory.mktemp("store"))), port=0, log_level="error")
    )
    thread = threading.Thread(target=app.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not app.started and time.monotonic() < deadline:
        time.sleep(0.05)
    address = f"http://127.0.0.1:{app.servers[0].sockets[0].getsockname()[1]}"
    while httpx.get(f"{address}/health/ready").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    yield address
    app.should_exit = True
    thread.join(30)


@pytest.fixture(scope="session")
def blocks() -> Callable[[str], list[Block]]:
    """The blocks of a page, in order."""
    return lambda page: [Block(*found) for found in _BLOCK.findall(page)]


@pytest.fixture(scope="session")
def differs() -> Callable[[Any, Any], str | None]:
    """Where what came back (the second) is not what is shown, None where it is.

    Figures are shown rounded. `…` stands for the rest of a string, of a list, and as a name for the other fields of an object.
    """
    return _differs


def _differs(shown: Any, real: Any, where: str = "") -> str | None:
    if isinstance(shown, dict) and isinstance(real, dict):
        more, fewer = real.keys() - shown.keys(), shown.keys() - {REST} - real.keys()
        if fewer or (more and REST not in shown):
            return f"{where}: fields {sorted(more | fewer)}"
        parts = [(name, shown[name], real[name]) for name in shown if name not in {REST, *WHENEVER}]
        return next((found for name, a, b in parts if (found := _differs(a, b, f"{where}.{name}"))), None)
    if isinstance(shown, list) and isinstance(real, list):
        given = shown[:-1] if shown[-1:] == [REST] else shown
        if len(real) < len(given) or (given is shown and len(real) > len(given)):
            return f"{where}: {len(real)} items"
        pairs = enumerate(zip(given, real, strict=False))
        return next((found for i, (a, b) in pairs if (found := _differs(a, b, f"{where}[{i}]"))), None)
    if type(shown) is float and type(real) is float:
        return None if abs(shown - real) < 2e-3 else f"{where}: {real}"
    if isinstance(shown, str) and isinstance(real, str) and shown.endswith(REST):
        return None if real.startswith(shown.removesuffix(REST)) else f"{where}: {real!r}"
    return None if type(shown) is type(real) and shown == real else f"{where}: {real!r}"
