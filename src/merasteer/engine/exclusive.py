"""One engine per model: the hooks, the layout of the weights and the attention of a model are one engine's while it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from merasteer.errors import EngineFailed

__all__ = ["exclusive"]

_taken: set[int] = set()  # the parameters of models that run, by identity; the engine keeps them alive
_lock = threading.Lock()


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Inside, the model is the caller's alone. Raises EngineFailed where another runs on it, or on one that holds some of its weights."""
    mine = {id(parameter) for parameter in model.parameters()}
    with _lock:
        if mine & _taken:
            raise EngineFailed(
                "engine: another engine runs on this model, or on its weights, and each would steer the other's requests; "
                "stop that one first, or load the model again"
            )
        _taken.update(mine)
    try:
        yield
    finally:
        with _lock:
            _taken.difference_update(mine)
