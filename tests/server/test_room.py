"""When those who are refused are told to come back, and what a refusal costs them and the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from mera_server.loading import Serving
from mera_server.room import Room

from merasteer.engine import EngineConfig
from merasteer.engine.engine import EngineStats
from merasteer.types import Generation, SteeringCounts


class Engine:
    """As many requests as the test says, in 4 places and a queue of 2."""

    config = EngineConfig(max_requests=4, max_waiting=2)

    def __init__(self, running: int, waiting: int) -> None:
        self.load = EngineStats(running, waiting, 0.5)

    def stats(self) -> EngineStats:
        return self.load


def room(running: int, waiting: int, seconds: Sequence[float]) -> Room:
    """After answers that held their places for `seconds`."""
    engine: Any = Engine(running, waiting)
    found = Room(lambda: Serving(engine, None, frozenset()))  # type: ignore[arg-type]
    for held in seconds:
        times = (100.0 + held / 2, 100.0 + held)
        found.answered(
            Generation((1, 2), "", "length", 1, None, SteeringCounts(), None, token_times=times, seated_at=100.0)
        )
    return found


@pytest.mark.parametrize(
    ("running", "waiting", "seconds", "wait"),
    [
        (4, 2, [], 1),  # nothing is known yet
        (4, 2, [0.2, 0.4], 1),
        (4, 2, [20.0], 5),  # one must leave, and every 5 s one does
        (4, 2, [10.0, 30.0], 5),
        (4, 11, [20.0], 50),  # a large batch came in before
        (2, 4, [20.0], 5),  # two places are being filled
        (4, 0, [20.0], 1),  # there is room by now
        (4, 2, [900.0] * 10 + [20.0] * 64, 5),  # only the last answers count
    ],
)
def test_the_wait_is_what_the_queue_needs_at_the_pace_of_the_last_answers(
    running: int, waiting: int, seconds: list[float], wait: int
) -> None:
    assert room(running, waiting, seconds).wait() == wait


def test_without_a_model_there_is_nothing_to_wait_for() -> None:
    found = Room(lambda: None)
    found.check()
    assert found.wait() == 1
