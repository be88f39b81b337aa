"""Whether the engine has room for another request, and when it will have: told to those who are refused."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from merasteer.types import Generation

if TYPE_CHECKING:
    from mera_server.loading import Serving

__all__ = ["Room"]

_REMEMBERED = 64  # answers


class Room:
    """Of one server. serving: what answers its requests, None while nothing does. Of the event loop."""

    def __init__(self, serving: Callable[[], Serving | None]) -> None:
        self._serving = serving
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)  # that each of the last answers had its place

    def check(self) -> None:
        """Raises Overloaded where the engine would refuse a request. Asked before its body is read: a refusal is to cost little."""
        serving = self._serving()
        if serving is not None:
            serving.engine.check_room()

    def answered(self, generation: Generation) -> None:
        """Remembers how long a generation had its place."""
        if generation.token_times:
            self._seconds.append(generation.token_times[-1] - generation.seated_at)

    def wait(self) -> int:
        """Whole seconds, 1 or more, until the queue is open again: places go as fast as answers end, one after the other."""
        serving = self._serving()
        if serving is None or not self._seconds:
            return 1
        load, sizes = serving.engine.stats(), serving.engine.config
        leaving = load.waiting + load.running - sizes.max_requests - (sizes.max_waiting or 0) + 1
        each = sum(self._seconds) / len(self._seconds) / sizes.max_requests
        return max(1, math.ceil(leaving * each))
