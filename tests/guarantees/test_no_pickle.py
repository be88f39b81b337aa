"""What SECURITY.md says of code that comes with data: nothing unpickles, nothing runs what a model or an artifact brings along."""

from __future__ import annotations

import ast
import os
import pickle
import shutil
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import torch

from merasteer import demo
from merasteer.engine import load_model
from merasteer.engine.hub import FILES
from merasteer.errors import BadArtifact, MeraError
from merasteer.store import load
from merasteer.store.tensors import decode

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "yaml.load",
    "np.load",
    "numpy.load",
}


@cache
def sources(root: Path) -> list[tuple[str, ast.AST]]:
    """Every node of every file that is installed, with the place of its file."""
    return [
        (str(path.relative_to(root)), node)
        for folder in ("src", "server", "clients/python")
        for path in sorted((root / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    ]


def test_no_source_imports_a_pickler(root: Path) -> None:
    found = {
        (file, name)
        for file, node in sources(root)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
        if name.split(".")[0] in MODULES
    }  # fmt: skip
    assert found == set()


def test_no_source_runs_text_or_loads_what_may_be_pickled(root: Path) -> None:
    calls = [(file, node) for file, node in sources(root) if isinstance(node, ast.Call)]
    assert len(calls) > 1000  # the sources were found
    found = {(file, ast.unparse(node.func)) for file, node in calls if ast.unparse(node.func) in CALLS}
    assert found == set()
    shells = [file for file, node in calls if any(keyword.arg == "shell" for keyword in node.keywords)]
    assert shells == []


def test_every_model_and_tokenizer_is_loaded_without_remote_code(root: Path) -> None:
    calls = [
        (file, node)
        for file, node in sources(root)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")
    ]
    assert len(calls) >= 3
    for file, node in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("trust_remote_code") == "False", f"{file}: {ast.unparse(node)}"


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_in_place_of_an_artifacts_file_is_refused_unread(tmp_path: Path) -> None:
    mark, bomb = tmp_path / "mark", pickle.dumps(Bomb(tmp_path / "mark"))
    with pytest.raises(BadArtifact, match="not a whole safetensors file"):
        decode(bomb)
    folder = next(demo.store_dir().glob("*/demo_spam/*/manifest.json")).parent
    for name in ("probe.safetensors", "calibration.json", "manifest.json"):
        copy = Path(shutil.copytree(folder, tmp_path / name / folder.name))
        (copy / name).write_bytes(bomb)
        with pytest.raises(BadArtifact, match=name):
            load(copy)
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists()  # it does go off


def test_code_in_the_weights_of_a_model_is_not_run(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo.model_dir(), tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(tmp_path / "mark")}, folder / "pytorch_model.bin")
    with pytest.raises(MeraError) as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mark").exists()


def test_no_pickled_weights_are_fetched_from_a_hub() -> None:
    files = (
        "pytorch_model.bin",
        "pytorch_model-00001-of-2.bin",
        "model.pt",
        "model.pth",
        "weights.pkl",
        "theirs.py",
        "x.ckpt",
    )
    assert [file for file in files for pattern in FILES if fnmatch(file, pattern)] == []
    assert any(fnmatch("model.safetensors", pattern) for pattern in FILES)
