"""Many long stop strings: found where a slow search finds them, at the cost of one."""

from __future__ import annotations

import random
from typing import Any

import pytest

from merasteer.engine import stops as module
from merasteer.engine.stops import Stops, _Node


def test_what_ends_and_what_may_begin_is_what_a_slow_search_finds() -> None:
    rng = random.Random(0)
    for _ in range(400):
        given = ["".join(rng.choice("ab") for _ in range(rng.randrange(1, 7))) for _ in range(rng.randrange(1, 5))]
        run, text = Stops(given), ""
        for _ in range(30):
            letter = rng.choice("abc")
            text += letter
            ends = run.step(letter)
            assert ends == max((len(stop) for stop in given if text.endswith(stop)), default=None)
            begun = [n for n in range(1, 7) if any(stop.startswith(text[-n:]) for stop in given)]
            assert run.held == max((n for n in begun if n <= len(text)), default=0)


def steps(given: list[str], text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How often the automaton looked for a symbol, and how many nodes it made, over a text that no stop ends in."""
    looks = made = 0

    class Counting(dict[Any, Any]):
        def get(self, *key: Any) -> Any:
            nonlocal looks
            looks += 1
            return super().get(*key)

    def node(*values: Any) -> Any:
        nonlocal made
        made += 1
        found = _Node(*values)
        found.next = Counting()
        return found

    monkeypatch.setattr(module, "_Node", node)
    run = Stops(given)
    assert all(run.step(letter) is None for letter in text)
    return looks, made


@pytest.mark.parametrize("length", [16, 256])
@pytest.mark.parametrize("kind", ["random", "alike", "never"])
def test_sixteen_stop_strings_cost_what_one_costs(kind: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: a character takes two looks at most in the long run, and two more where something is begun for the first time."""
    rng = random.Random(kind)
    if kind == "random":
        given = ["".join(rng.choice("abc") for _ in range(length - 1)) + "d" for _ in range(16)]
        text = "".join(stop[: rng.randrange(1, length - 1)] for stop in given * 4)
    elif kind == "alike":  # what is begun is begun at every character
        given = ["a" * (length - 1) + letter for letter in "bcdefghijklmnopq"]
        text = ("a" * (length + 40) + "r") * 8
    else:
        given = ["z" + "".join(rng.choice("abc") for _ in range(length - 1)) for _ in range(16)]
        text = "".join(rng.choice("abc") for _ in range(2000))
    for count in (1, 16):
        looks, made = steps(given[:count], text, monkeypatch)
        assert looks <= 2 * (len(text) + made)
        assert made <= sum(map(len, given[:count])) + 1
