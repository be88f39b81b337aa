"""`mera probes verify --model`: what a model says to the canaries of the artifacts that are certified for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mera_server.cli import main

from merasteer import demo, store


@pytest.fixture
def verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, str], str]]:
    """Exit code, task -> what is said of its artifact, and the errors; over a store of the test's own."""
    if not (demo.model_dir() / "config.json").is_file():
        pytest.skip("the built-in demo is not built; run `mera demo build`")

    shutil.copytree(demo.store_dir(), tmp_path, dirs_exist_ok=True)

    def run(*given: str) -> tuple[int, dict[str, str], str]:
        command = ["probes", "verify", *given, "--store", str(tmp_path), "--model", str(demo.model_dir())]
        code = main([*command, "--device", "cpu"])
        said = capsys.readouterr()
        lines = [line.split("  ", 2) for line in said.out.splitlines()]
        return code, {task: told for _, task, told in lines}, said.err

    return run


def copied(folder: Path, name: str, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """The certified artifact of the demo under another task's name, its calibration and tensors changed."""
    old = store.load(next(path.parent for path in demo.store_dir().glob("*/demo_spam/*/manifest.json")))
    manifest, calibration = (json.loads(json.dumps(dict(part))) for part in (old.manifest, old.calibration))
    manifest["task"]["name"] = name
    tensors = {"weight": old.weight, "bias": old.bias, "step": old.step}
    change(calibration, tensors)
    store.publish(folder, manifest=manifest, calibration=calibration, tensors=tensors)


def other_numbers(calibration: dict[str, Any], _: Any) -> None:
    calibration["canaries"]["prompts"][4]["log_q"][0] -= 0.5


def no_canaries(calibration: dict[str, Any], _: Any) -> None:
    del calibration["canaries"]


def other_step(_: Any, tensors: dict[str, torch.Tensor]) -> None:
    tensors["weight"], tensors["step"] = tensors["weight"] * 1.02, tensors["step"] / 1.02


def test_what_behaves_as_tested_passes(verify: Any) -> None:
    code, told, _ = verify()
    assert code == 0
    assert told["demo_spam"] == "sound; canaries pass"
    assert told["demo_desk_a"] == "sound"  # it is not certified: nothing is claimed


def test_what_is_off_is_told_and_ends_with_2(verify: Any, tmp_path: Path) -> None:
    copied(tmp_path, "moved", other_numbers)
    copied(tmp_path, "stepped", other_step)
    copied(tmp_path, "before", no_canaries)
    code, told, errors = verify()
    assert code == 2
    assert told["moved"].startswith("sound; the model does not behave as tested: canary 5 is off by 0.5 (tolerance ")
    assert told["stepped"].startswith("sound; the model does not behave as tested: canary 1 is off by ")
    assert told["before"] == (
        "sound; other conditions: made before conditions and canaries were kept; test it again with mera recertify"
    )
    assert told["demo_spam"] == "sound; canaries pass"
    assert "store: 2 of 4 artifacts are off here; test them again with mera recertify" in errors


def test_other_conditions_are_told_and_are_no_fault(verify: Any) -> None:
    code, told, _ = verify("--dtype", "bfloat16")
    assert code == 0
    assert told["demo_spam"].endswith("do not hold here: dtype float32 then, bfloat16 here")


def test_one_artifact_alone(verify: Any, tmp_path: Path) -> None:
    copied(tmp_path, "moved", other_numbers)
    [good] = [path.parent.name for path in demo.store_dir().glob("*/demo_spam/*/manifest.json")]
    code, told, _ = verify(good)
    assert (code, told) == (0, {"demo_spam": "sound; canaries pass"})
    [bad] = [path.parent for path in tmp_path.glob("*/moved/*/manifest.json")]
    shutil.move(bad / "probe.safetensors", bad / "elsewhere")
    code, told, errors = verify(bad.name)
    assert code == 2
    assert "rejected" in errors
    assert "canaries" not in told["moved"]
