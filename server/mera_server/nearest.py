"""The name that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["meant", "nearest"]


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name that is the fewest typing mistakes away: one, or two in a name of eight letters or more. None where none is.

    >>> nearest("keys_fiel", ["keys_file", "port"])
    'keys_file'
    >>> nearest("prot", ["keys_file", "port"]), nearest("host", ["port"])
    ('port', None)
    """
    most = 2 if len(given) >= 8 else 1
    found = min(((_mistakes(given, name), name) for name in known if abs(len(name) - len(given)) <= most), default=None)
    return found[1] if found is not None and found[0] <= most else None


def meant(given: str, known: Iterable[str]) -> str:
    """ " (did you mean port?)", or nothing."""
    found = nearest(given, known)
    return "" if found is None else f" (did you mean {found}?)"


def _mistakes(one: str, other: str) -> int:
    """Letters to put in, to leave out, to replace or to swap with their neighbour (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        earlier, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            least = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], wanted):
                least = min(least, earlier[j - 2] + 1)
            row.append(least)
    return row[-1]
