"""The first of several stop strings in a text that comes character by character: one automaton for all of them.

It is Aho and Corasick's (1975), built where the text leads: a request pays for the part that its answer meets, a character for one step
whatever the number of strings and their length.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Stops", "Symbol"]

Symbol = str | int  # a character, or the id of a special token, which stands for its whole text and adds no character
Stop = Sequence[Symbol]


class _Node:
    """The longest end of the text with which some stop begins.

    held: its characters. ends: characters of the longest stop that ends here, None for none. back: the next shorter such end.
    parts: the stops that go on from here, by their next symbol. next: the nodes behind, as far as they were met.
    """

    __slots__ = ("back", "depth", "ends", "held", "next", "parts")

    def __init__(self, stops: Sequence[Stop], depth: int, held: int, back: _Node | None) -> None:
        self.depth, self.held, self.back = depth, held, back
        self.ends: int | None = None if back is None else back.ends
        self.next: dict[Symbol, _Node] = {}
        self.parts: dict[Symbol, list[Stop]] = {}
        for stop in stops:
            if len(stop) == depth:
                self.ends = held
            else:
                self.parts.setdefault(stop[depth], []).append(stop)


class Stops:
    """Follows one text. Mutated by `step` alone; none of the stops is empty."""

    def __init__(self, stops: Sequence[Stop]) -> None:
        self._node = _Node(stops, 0, 0, None)

    @property
    def held(self) -> int:
        """How many characters at the end of the text may be the beginning of a stop."""
        return self._node.held

    def step(self, symbol: Symbol) -> int | None:
        """Takes one symbol; returns the characters of the longest stop that ends with it, None if none does."""
        node, parents = self._node, []
        while (found := node.next.get(symbol)) is None:
            if symbol in node.parts:
                parents.append(node)
            if node.back is None:
                found = node
                break
            node = node.back
        for parent in reversed(parents):
            held = parent.held + isinstance(symbol, str)
            found = parent.next[symbol] = _Node(parent.parts[symbol], parent.depth + 1, held, found)
        self._node = found
        return found.ends
