"""What README says is what a reader gets: its tree exists, its commands are there, its calls give the answers it shows."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from mera_server.app import create_app


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The app on a free loopback port, ready."""
    app = uvicorn.Server(uvicorn.Config(create_app(), port=0, log_level="error"))
    thread = threading.Thread(target=app.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not app.started and time.monotonic() < deadline:
        time.sleep(0.05)
    base = f"http://127.0.0.1:{app.servers[0].sockets[0].getsockname()[1]}"
    while httpx.get(f"{base}/health/ready").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    yield base
    app.should_exit = True
    thread.join(30)


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme, re.DOTALL)


def test_the_curl_call_gives_the_answer_that_is_shown(root: Path, server: str) -> None:
    readme = (root / "README.md").read_text()
    call = next(block for block in blocks(readme, "sh") if "curl" in block)
    body = re.search(r"-d '(.*?)'", call, re.DOTALL)
    assert body is not None
    shown = json.loads(blocks(readme, "json")[0].replace("…", ""))
    answer = httpx.post(f"{server}/generate", content=body[1]).json()
    assert _close(shown, answer), answer
    error = answer["mera"]["predicted_error"]
    assert answer["mera"]["decision"] == "steered"
    assert error["after"] <= answer["mera"]["alpha"] + 1e-5


def _close(shown: object, real: object) -> bool:
    """Equal, but for figures shown rounded and digests shown short."""
    if isinstance(shown, dict) and isinstance(real, dict):
        return shown.keys() == real.keys() and all(_close(shown[key], real[key]) for key in shown)
    if isinstance(shown, float) and isinstance(real, float):
        return abs(shown - real) < 2e-3
    if isinstance(shown, str) and isinstance(real, str):
        return shown == real or (len(shown) >= 8 and real.startswith(shown))
    return shown == real


def test_the_python_session_runs(root: Path, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    for page in ("README.md", "clients/python/README.md"):
        for block in blocks((root / page).read_text(), "python"):
            exec(compile(block.replace("http://127.0.0.1:8000", server), page, "exec"), {})
    assert "spam steered True" in capsys.readouterr().out


def test_every_folder_in_the_tree_exists_and_every_package_is_in_it(root: Path) -> None:
    readme = (root / "README.md").read_text()
    tree = readme[readme.index("src/merasteer/     ") : readme.index("[docs/structure.md]")]
    listed = re.findall(r"^(?:[├└]── )?(\S+/)\s", tree, re.MULTILINE)
    inside = {name for name in listed if (root / "src/merasteer" / name).is_dir()}
    assert all((root / name).is_dir() or name in inside for name in listed)
    packages = {f"{path.parent.name}/" for path in (root / "src/merasteer").glob("*/__init__.py")}
    assert packages <= inside


def test_structure_names_only_what_exists(root: Path) -> None:
    page = (root / "docs/structure.md").read_text()
    bases = ["", "src/", "src/merasteer/", "server/mera_server/", "src/merasteer/engine/", "tests/"]
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", page):
        assert any((root / base / name).exists() for base in bases), name
