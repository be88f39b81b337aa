"""Two answers of one request compared in everything that it says, but for its times."""

from __future__ import annotations

import pytest

from merasteer.types import Generation

__all__ = ["assert_same", "differ"]

COUNTS = ("tokens", "steered_tokens", "cells", "steered_cells")


def assert_same(a: Generation, b: Generation, about: object = None) -> None:
    """Whole numbers and texts exactly, others as far as sums may depend on how rows are batched. about: said where they differ."""
    mine, theirs = ((x.tokens, x.text, x.finish_reason, x.prompt_tokens) for x in (a, b))
    assert mine == theirs, about
    for name in COUNTS:
        assert getattr(a.steering, name) == getattr(b.steering, name), (about, name)
    assert a.steering.mean_shift == pytest.approx(b.steering.mean_shift, abs=1e-4), about
    assert a.steering.max_shift == pytest.approx(b.steering.max_shift, abs=1e-4), about
    for field in ("predicted_error", "answer", "logprobs", "trace"):
        assert (getattr(a, field) is None) == (getattr(b, field) is None), (about, field)
    if a.predicted_error is not None and b.predicted_error is not None:
        one, other = a.predicted_error, b.predicted_error
        assert (one.layer, one.position) == (other.layer, other.position), about
        assert (one.before, one.after) == pytest.approx((other.before, other.after), abs=1e-4), about
    if a.answer is not None and b.answer is not None:
        assert (a.answer.label, a.answer.changed) == (b.answer.label, b.answer.changed), about
        assert a.answer.probabilities == pytest.approx(b.answer.probabilities, abs=1e-4), about
    if a.logprobs is not None:
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3), about
    for one, other in zip(a.trace or (), b.trace or (), strict=True):
        for name in ("before", "after", "shift"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4), (about, name)


def differ(a: Generation, b: Generation) -> bool:
    """Whether anything is another."""
    try:
        assert_same(a, b)
    except AssertionError:
        return True
    return False
