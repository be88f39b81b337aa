"""What README says is what a reader gets: its tree exists, its commands are there, its calls give the answers it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest


def test_the_curl_call_gives_the_answer_that_is_shown(root: Path, server: str, blocks: Any, differs: Any) -> None:
    call = next(block for block in blocks((root / "README.md").read_text()) if "curl" in block.code)
    body = re.search(r"-d '(.*?)'", call.code, re.DOTALL)
    assert body is not None
    shown = json.loads(call.output)
    answer = httpx.post(f"{server}/generate", content=body[1]).json()
    assert differs(shown, answer) is None, answer
    error = answer["mera"]["predicted_error"]
    assert answer["mera"]["decision"] == "steered"
    assert error["after"] <= answer["mera"]["alpha"] + 1e-5


def test_the_python_session_runs(root: Path, server: str, blocks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for page in ("README.md", "clients/python/README.md"):
        for block in (found.code for found in blocks((root / page).read_text()) if found.language == "python"):
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
