"""Two ranks on a CPU (gloo), each with half of every layer: the answers of one process, and the same tables on both."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from merasteer.engine import Engine, LoadedModel, load_model
from merasteer.errors import InvalidInput

from ..forking import Forker
from . import rank


@pytest.fixture(scope="module")
def folder(llama: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parallel") / "llama"
    llama.model.save_pretrained(path)
    llama.tokenizer.save_pretrained(path)
    return path


def run(forker: Forker, folder: Path, out: Path, *fault: str) -> Any:
    """What rank 0 of two wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    script, arguments = Path(__file__).with_name("rank.py"), [str(folder), str(out), *fault]
    ranks = [
        forker.start(script, arguments, {**os.environ, **shared, "RANK": str(i), "LOCAL_RANK": str(i)})
        for i in range(2)
    ]
    try:
        for process in ranks:
            process.wait(120)
    finally:
        for process in ranks:
            process.kill()
        told = [text for process in ranks for text in process.communicate()]
    assert (out / "answers.json").exists(), "\n".join(told)
    return json.loads((out / "answers.json").read_text())


def test_two_ranks_answer_as_one_process_and_hold_the_same_tables(folder: Path, tmp_path: Path, forker: Forker) -> None:
    parallel = run(forker, folder, tmp_path)
    with Engine(load_model(folder, device="cpu", dtype="float32"), rank.CONFIG) as engine:
        engine.register("a", rank.vectors(1, "residual"))
        engine.register("b", rank.vectors(2, "mlp_input"))
        alone = rank.answered(engine)
    assert [answer["tokens"] for answer in parallel] == [list(answer["tokens"]) for answer in alone]
    for one, two in zip(parallel, alone, strict=True):
        assert [one[name] for name in ("cells", "reason", "label")] == [
            two[name] for name in ("cells", "reason", "label")
        ]
        assert one["reads"] == pytest.approx(two["reads"], abs=1e-4)
    assert sum(answer["cells"] for answer in alone) > 50
    assert sum(answer["label"] is not None for answer in alone) == 5
    assert {answer["reason"] for answer in alone} == {"length", "stop_sequence"}
    first, second = (json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2))
    assert "send requests to rank 0" in second["seen"].pop()
    assert len(first["seen"]) > 50
    assert second["seen"] == first["seen"][: len(second["seen"])]
    assert (
        len(second["seen"]) >= len(first["seen"]) - 1
    )  # the last pass of a cancelled request may have been the first rank's alone


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["forget", "die"])
def test_a_rank_that_fails_fails_every_request_and_the_group(
    folder: Path, tmp_path: Path, forker: Forker, fault: str
) -> None:
    """Nobody waits for ever, and nobody is answered unsteered: vectors that one rank lacks, and a rank that dies."""
    answer = run(forker, folder, tmp_path, fault)
    assert answer["dead"]
    assert "failed" in answer


def test_parts_need_as_many_processes(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="torchrun --nproc-per-node 2"):
        load_model(folder, device="cpu", tensor_parallel=2)
    with pytest.raises(InvalidInput, match="device_map"):
        load_model(folder, device_map="cpu", tensor_parallel=2)


def test_a_rank_refuses_a_checkpoint_that_lacks_a_tensor(folder: Path, tmp_path: Path, forker: Forker) -> None:
    lame, out = tmp_path / "lame", tmp_path / "out"
    shutil.copytree(folder, lame)
    out.mkdir()
    weights = load_file(lame / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, lame / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AssertionError, match=r"UnsupportedModel.* lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        run(forker, lame, out)
