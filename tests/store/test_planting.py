from pathlib import Path
from typing import Any

import pytest
import torch

from merasteer.store import ModelIdentity, latest, load, plant, scan, summary
from merasteer.types import ServedTask

TASK = ServedTask("spam", ("ham", "spam"), (((3,), (4,)), ((5,),)), "{text}")


def test_readouts_have_unit_length_at_every_layer(tmp_path: Path, identity: ModelIdentity) -> None:
    artifact = load(plant(tmp_path, identity, TASK, "mlp_input", 0), identity)
    assert artifact.weight.norm(dim=-1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert torch.equal(artifact.step, artifact.weight)
    assert (artifact.alpha, artifact.certified, artifact.task) == (None, False, TASK)
    assert artifact.vectors.active_layers == (0, 1, 2)
    assert artifact.vectors.hook_point == "mlp_input"


def test_the_seed_decides(tmp_path: Path, identity: ModelIdentity) -> None:
    names = [plant(tmp_path, identity, TASK, "residual", seed).name for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    assert latest(tmp_path, identity.slug, "spam") == names[2]


def test_planting_leaves_a_calibrated_default_alone(make: Any, tmp_path: Path, identity: ModelIdentity) -> None:
    plant(tmp_path, identity, TASK, "residual", 0)
    calibrated = make().publish(tmp_path)
    plant(tmp_path, identity, TASK, "residual", 1)
    assert latest(tmp_path, identity.slug, "spam") == calibrated.name
    assert [entry.status for entry in scan([tmp_path], identity)] == ["loaded"] * 3


def test_a_planted_artifact_is_described_without_a_test(tmp_path: Path, identity: ModelIdentity) -> None:
    plant(tmp_path, identity, TASK, "residual", 0)
    facts = summary(scan([tmp_path], identity)[0])
    assert (facts["family"], facts["certified"], facts["gain"], facts["layers"]) == ("planted", False, None, [0, 1, 2])
