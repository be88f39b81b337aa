"""Activations with a planted error direction of known sign, and layers of pure noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch


@dataclass(frozen=True)
class Planted:
    """Layers 0 and 2 read the target along `true`; layer 1 is noise."""

    activations: torch.Tensor  # (N, 3, d)
    target: np.ndarray
    true: np.ndarray  # (d,), unit length, points at error


@pytest.fixture(scope="module")
def planted() -> Planted:
    generator = np.random.default_rng(3)
    n, d = 400, 24
    true = generator.normal(size=d)
    true /= np.linalg.norm(true)
    error = generator.normal(size=n) * 2.0
    noise = generator.normal(size=(n, 3, d)) * generator.uniform(0.5, 3.0, size=d) + generator.normal(size=d)
    signal = np.array([1.0, 0.0, 0.5])[None, :, None] * error[:, None, None] * true * 4.0
    return Planted(torch.from_numpy(noise + signal).float(), error, true)
