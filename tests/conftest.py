"""Shared by all tests: one torch thread setting, and where the real data lies (absent elsewhere: tests skip with a reason)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets beside the checkout (or $MERA_DATA)."""
    folder = Path(os.environ.get("MERA_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "sms_spam").is_dir():
        pytest.skip(f"no real data sets at {folder}; set MERA_DATA")
    return folder
