"""Probes on sparse encodings. One test uses sae-lens itself; the others a stand-in with the same few attributes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from merasteer.errors import InvalidInput
from merasteer.probes import encodings, fit_layer, load_sae, probe_rows, sae_scores, select

WIDTH, FEATURES = 16, 64


@dataclass
class Standard:
    """relu((x − b_dec)·W_enc + b_enc). Column 5 fires where the first input exceeds 1, column 6 never."""

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    b_dec: torch.Tensor
    cfg: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(d_in=WIDTH))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)


@pytest.fixture(scope="module")
def sae() -> Standard:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(WIDTH, FEATURES, generator=generator) * 0.2
    b_dec, b_enc = torch.randn(WIDTH, generator=generator) * 0.1, torch.zeros(FEATURES)
    w[:, 5], b_enc[5] = torch.eye(WIDTH)[0], b_dec[0] - 1.0
    w[:, 6], b_enc[6] = 0.0, -1.0
    return Standard(w, b_enc, b_dec)


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Activations (600, 2, 16) whose layer 1 has the error that feature 5 reads and layer 0 noise, the target, and wrong."""
    rng = np.random.default_rng(2)
    h = rng.normal(size=(600, 2, WIDTH))
    target = 3.0 * np.maximum(h[:, 1, 0] - 1.0, 0.0) + rng.normal(size=600) * 0.05
    return torch.from_numpy(h).float(), target, (target > 0.3).astype(np.float64)


@pytest.mark.parametrize("family", ["ridge", "lasso", "logistic"])
def test_an_error_that_one_feature_reads_is_found_where_it_is(sae: Any, planted: Any, family: Any) -> None:
    activations, target, wrong = planted
    noise, read = sae_scores(activations, target, wrong, {1: sae, 0: sae}, "residual", family=family)
    for layer, row in enumerate((noise, read)):
        assert (row["hook_point"], row["readout"], row["layer"]) == ("residual", "sae", layer)
    assert set(read) == {"hook_point", "readout", "layer", "rmse", "dummy_rmse", "auroc", "standard_error", "idle"}
    assert not read["idle"]
    assert read["auroc"] > 0.97
    assert 0.3 < noise["auroc"] < 0.7
    assert read["rmse"] < 0.5 * read["dummy_rmse"]


def test_features_read_a_kinked_error_better_than_the_activations_do(sae: Any, planted: Any) -> None:
    activations, target, wrong = planted
    on_activations = probe_rows(select(activations, target, fit_layer, wrong=wrong), "residual", "error")[1]
    [on_features] = sae_scores(activations, target, wrong, {1: sae}, "residual")
    assert on_features["dummy_rmse"] == on_activations["dummy_rmse"]  # the same items in the same splits
    assert on_features["rmse"] < 0.5 * on_activations["rmse"]


def test_features_that_never_fire_change_nothing(sae: Any, planted: Any) -> None:
    activations, target, wrong = planted
    dead = Standard(torch.zeros(WIDTH, FEATURES), -torch.ones(FEATURES), torch.zeros(WIDTH))
    [row] = sae_scores(activations, target, wrong, {1: dead}, "residual")
    assert row["idle"]
    assert row["auroc"] == 0.5
    assert row["rmse"] == pytest.approx(row["dummy_rmse"])
    kept = [i for i in range(FEATURES) if i != 6]
    without = Standard(sae.W_enc[:, kept], sae.b_enc[kept], sae.b_dec)
    rows = [sae_scores(activations, target, wrong, {1: one}, "residual")[0] for one in (sae, without)]
    assert rows[0] == rows[1]


def test_a_width_or_a_layer_that_does_not_match_is_refused(sae: Any, planted: Any) -> None:
    activations, target, wrong = planted
    assert encodings(sae, activations[:, 0]).shape == (600, FEATURES)
    for wrong_shape in (activations[:, 0, :-1], activations):
        with pytest.raises(InvalidInput, match="sae: it encodes width 16"):
            encodings(sae, wrong_shape)
    with pytest.raises(InvalidInput, match=r"sae: layer 2 is outside 0\.\.1"):
        sae_scores(activations, target, wrong, {2: sae}, "residual")


def test_without_the_package_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(InvalidInput, match=r"install mera-server\[sae\]"):
        load_sae(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the package's own imports warn
def test_an_autoencoder_of_sae_lens_is_saved_loaded_and_read(tmp_path: Path, sae: Standard, planted: Any) -> None:
    library: Any = pytest.importorskip("sae_lens", reason="sae-lens is not installed: pip install mera-server[sae]")
    made = library.StandardSAE(library.StandardSAEConfig(d_in=WIDTH, d_sae=FEATURES, apply_b_dec_to_input=True))
    parts = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "b_dec")}
    made.load_state_dict({**made.state_dict(), **parts})
    made.save_model(tmp_path / "sae")

    loaded = load_sae(tmp_path / "sae")
    activations, target, wrong = planted
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    found = encodings(loaded, activations[:, 1])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sae.encode(activations[:, 1]))
    assert (found[:, 5] > 0).tolist() == (activations[:, 1, 0] > 1.0).tolist()
    [row] = sae_scores(activations, target, wrong, {1: loaded}, "residual")
    [same] = sae_scores(activations, target, wrong, {1: sae}, "residual")
    assert row["rmse"] == pytest.approx(same["rmse"], rel=1e-4)
    assert row["auroc"] > 0.97
    with pytest.raises(InvalidInput, match="encodes width 16"):
        encodings(loaded, torch.zeros(3, 8))
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InvalidInput, match=r"sae: .*give a folder written by"):
            load_sae(folder)
