"""What differs between two artifacts, each difference made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mera_server.cli import main

from merasteer.store import differences, load


def compared(one: Any, two: Any, store: Path) -> dict[str, Any]:
    found = differences(load(one.publish(store)), load(two.publish(store)))
    assert json.loads(json.dumps(found)) == found
    return found


def test_an_artifact_does_not_differ_from_itself(make: Any, tmp_path: Path) -> None:
    found = compared(make(), make(), tmp_path)
    assert found["equal"]
    assert found["fields"] == found["certificate"] == found["candidates"]["gains"] == {}
    assert found["splits"]["train"] == {"first": 2, "second": 2, "shared": 2, "equal": True}
    assert [layer["weight"] for layer in found["layers"]] == [pytest.approx(1.0), None, pytest.approx(1.0)]


def test_every_difference_is_named(make: Any, tmp_path: Path) -> None:
    one, two = make(), make(8)
    two.manifest["steering"].update(alpha=0.4, hook_point="mlp_input")
    two.manifest["task"]["template"] = "Is {text} spam?"
    two.manifest["versions"] = {"torch": "3", "numpy": "2"}
    two.manifest["splits"]["train"] = ["a2", "a1", "a9"]
    best, bias = two.calibration["candidates"]
    best.update(alpha=0.4, hook_point="mlp_input")
    two.calibration["candidates"] = [best, {**bias, "key": "else"}]
    two.calibration["tested"][0].update(p_value=1e-4, gained=30, gain=0.08)
    two.tensors["weight"][0] *= -2
    two.tensors["step"][0] *= -0.5
    two.tensors["weight"][2] = torch.roll(two.tensors["weight"][2], 1)
    two.tensors["step"][2] = torch.roll(two.tensors["step"][2], 1)
    found = compared(one, two, tmp_path)
    assert not found["equal"]
    assert found["fields"] == {
        "task.template": ["Is “{text}” ham or spam? Answer:", "Is {text} spam?"],
        "steering.alpha": [0.3, 0.4],
        "steering.hook_point": ["residual", "mlp_input"],
        "seeds.fit": [7, 8],
        "versions.torch": ["2", "3"],
        "versions.numpy": [None, "2"],
    }
    assert found["splits"]["train"] == {"first": 2, "second": 3, "shared": 2, "equal": False}
    assert found["splits"]["test"]["equal"]
    assert found["candidates"]["only_first"] == ["logit_bias"]
    assert found["candidates"]["only_second"] == ["else"]
    assert found["certificate"] == {"p_value": [1e-6, 1e-4], "gained": [40, 30], "gain": [0.12, 0.08]}
    first, idle, third = found["layers"]
    assert (first["weight"], first["step"]) == (pytest.approx(-1.0), pytest.approx(-1.0))
    assert idle == {"layer": 1, "weight": None, "step": None}
    row = one.tensors["weight"][2].double()
    assert third["weight"] == pytest.approx(float(row @ torch.roll(row, 1) / (row @ row)))


def test_other_shapes_have_no_angle_and_no_certificate_is_a_difference(make: Any, tmp_path: Path) -> None:
    two = make()
    two.manifest["model"]["width"] = 9
    for name in ("weight", "step", "contrastive"):
        two.tensors[name] = torch.nn.functional.pad(two.tensors[name], (0, 1))
    two.manifest["certified"] = False
    two.calibration.update(tested=[], decision="abstained", reason="uncertified", chosen=None)
    found = compared(make(), two, tmp_path)
    assert found["layers"] is None
    assert found["certificate"]["p_value"] == [1e-6, None]


def test_on_the_command_line(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = make().publish(tmp_path).name, make(8).publish(tmp_path).name
    assert main(["probes", "diff", one, two, "--store", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["fields"] == {"seeds.fit": [7, 8]}
    assert main(["probes", "diff", one, "ffffffffffff", "--store", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
