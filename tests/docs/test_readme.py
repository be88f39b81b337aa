"""What README says is what a reader gets: its tree exists, its commands are there, its calls give the answers it shows."""

from __future__ import annotations

import json
import re
import shlex
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from mera_server.cli import main
from mera_server.commands.bench import spread

from merasteer import bench as study
from merasteer import demo


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


def first_bench(root: Path) -> list[str]:
    """The arguments of README's first `mera bench`."""
    page = (root / "README.md").read_text()
    return spread(shlex.split(re.findall(r"^mera (bench .*)$", page, re.MULTILINE)[0]))


def test_the_first_bench_command_needs_no_network(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checks pass with every socket refused, and they look at all that it needs."""

    def refused(*_: object, **__: object) -> None:
        raise OSError("no network")

    if not (demo.model_dir() / "config.json").is_file():
        pytest.skip("the built-in demo is not built; run `mera demo build`")
    asked: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(study, "bench", lambda grid, *_: asked.append(grid) or [])
    monkeypatch.setattr(study, "write_results", lambda grid, cells: [root / "README.md"])
    monkeypatch.chdir(tmp_path)
    assert main(first_bench(root)) == 0, capsys.readouterr().err
    [grid] = asked
    assert (grid.models, [task.name for task in grid.tasks]) == ((str(demo.model_dir()),), ["demo_spam"])
    assert grid.size == len(grid.methods) == 5


@pytest.mark.slow
def test_the_first_bench_command_ends_with_its_table(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(first_bench(root)) == 0
    said = capsys.readouterr().out
    assert "| *label probe accuracy* |" in said
    assert "failed" not in said.split("SPI on the test split")[0]
    assert (tmp_path / "study" / "plots" / "recall-mera-demo.png").is_file()
