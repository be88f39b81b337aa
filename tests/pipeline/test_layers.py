"""Layers fit beside one another: the same numbers however many at once, and those of the functions that take all layers together."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from merasteer.pipeline import Bars, Options, layers
from merasteer.pipeline.fit import fit, vectors_of
from merasteer.probes import FAMILIES, contrastive_probes, directions, error_target, errors, fit_probes
from merasteer.types import CLOSED_FORM, CONTRASTIVE

from .test_parts import collected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_do_not_depend_on_how_many_layers_are_fit_at_once(family: Any) -> None:
    job, read = collected(Options(family=family, directions=CLOSED_FORM, ordering=100))
    one, many = (fit(job, read, Bars(), workers) for workers in (1, 3))
    assert one.facts == many.facts
    assert one.tensors.keys() == many.tensors.keys()
    assert all(torch.equal(tensor, many.tensors[name]) for name, tensor in one.tensors.items())


def test_vectors_are_those_of_all_layers_fit_together() -> None:
    job, read = collected(Options(directions=CLOSED_FORM, hook_points=("residual",), ordering=100))
    labels = [example.label for example in job.splits.train]
    y = error_target(errors(read.tensors["probabilities"].numpy(), labels))[job.fitting]
    rows = read.tensors["activations.residual"][job.fitting]
    for key, vectors in vectors_of(fit(job, read, Bars())).items():
        name: Any = key.split("/")[1]
        probes = contrastive_probes(rows, y) if name in CONTRASTIVE else fit_probes(rows, y)
        expected = directions("residual", rows, probes, vectors.active_layers, vectors.report_layer, [name])[name]
        for part in ("weight", "step"):
            torch.testing.assert_close(getattr(vectors, part), getattr(expected, part), rtol=1e-6, atol=1e-9)
        active = list(vectors.active_layers)
        torch.testing.assert_close(vectors.bias[active], expected.bias[active], rtol=1e-6, atol=1e-9)


def test_so_many_layers_at_once_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    most, running, lock, meet = [0], [0], threading.Lock(), threading.Barrier(2, timeout=0.2)

    def work(layer: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        try:
            meet.wait()
        except threading.BrokenBarrierError:
            meet.reset()
        with lock:
            running[0] -= 1
        return layer

    assert list(layers.beside_one_another(work, 6, 10, workers=2)) == list(range(6))
    assert most == [2]
    most[0] = 0
    monkeypatch.setattr(layers, "MEMORY", int(1.5 * layers.COPIES * 8 * 10))
    assert list(layers.beside_one_another(work, 2, 10, workers=2)) == [0, 1]
    assert most == [1]


def test_shrinkage_without_forming_the_squares_is_that_of_the_library() -> None:
    from sklearn.covariance import ledoit_wolf_shrinkage

    from merasteer.probes import Covariance

    rng = np.random.default_rng(0)
    for n, d in ((50, 8), (30, 70), (12, 1), (5, 40)):
        x = rng.normal(size=(n, d)) * rng.uniform(0.1, 30, size=d) + 7.0
        assert Covariance(x).shrinkage == pytest.approx(float(ledoit_wolf_shrinkage(x)), rel=1e-9, abs=1e-12)
