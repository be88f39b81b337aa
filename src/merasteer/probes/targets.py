"""What a probe is fit to: E = 1 − q(true label) at the answer position, as a clipped logit (docs/method.md section 1).

Shapes: N items, V tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from merasteer.errors import InvalidInput

__all__ = ["CLIP", "class_probabilities", "class_scores", "error_target", "errors"]

Floats = npt.NDArray[np.float64]

# E is clipped to [CLIP, 1 − CLIP] before the logit. The value matters: with 30 % of E = 1 the mean predicted error is
# .34 at .01 and .89 at 1e-6, because a least-squares fit chases the far ends.
CLIP = 0.01


def class_scores(logits: torch.Tensor, variants: Sequence[Sequence[int]]) -> torch.Tensor:
    """The largest logit over each label's variants, float32. logits (..., V), variants C lists of token ids: (..., C).

    >>> class_scores(torch.tensor([[0.0, 2.0, 1.0]]), [[0, 1], [2]])
    tensor([[2., 1.]])
    """
    return torch.stack([logits[..., list(ids)].float().amax(-1) for ids in variants], dim=-1)


def class_probabilities(scores: torch.Tensor) -> torch.Tensor:
    """q, the softmax over the class axis. scores (..., C): (..., C)."""
    return torch.softmax(scores.float(), dim=-1)


def errors(probabilities: npt.ArrayLike, labels: Sequence[int], answered: Sequence[bool] | None = None) -> Floats:
    """E = 1 − q_y, and 1 where the answer is missing: a missing answer is wrong, never dropped.

    probabilities (N, C), labels N class indices, answered N flags (None: all answered). Returns (N,).

    >>> errors([[0.75, 0.25], [0.5, 0.5]], [0, 1], [True, False])
    array([0.25, 1.  ])
    """
    q = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(labels, dtype=np.int64)
    if q.ndim != 2 or y.shape != (len(q),) or (answered is not None and len(answered) != len(q)):
        raise InvalidInput(
            f"errors: probabilities {q.shape}, {y.size} labels and the answered flags do not agree; give (N, C), N, N"
        )
    if y.size and not (y.min() >= 0 and y.max() < q.shape[1]):
        raise InvalidInput(f"errors: a label is outside 0..{q.shape[1] - 1}; give class indices")
    missed = 1.0 - q[np.arange(len(y)), y]
    return missed if answered is None else np.where(np.asarray(answered, dtype=bool), missed, 1.0)


def error_target(error: npt.ArrayLike, clip: float = CLIP) -> Floats:
    """logit(clip(E, clip, 1 − clip)), the target of every probe. error (N,): (N,).

    >>> error_target([0.5]).tolist()
    [0.0]
    """
    e = np.clip(np.asarray(error, dtype=np.float64), clip, 1.0 - clip)
    return np.asarray(np.log(e) - np.log1p(-e), dtype=np.float64)
