"""Typed reading of one JSON object: every failure is a BadArtifact that names the field, its value and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from merasteer.errors import BadArtifact

__all__ = ["SHA256", "Fields", "one_line", "shown"]

SHA256 = re.compile(r"[0-9a-f]{64}")


def shown(value: object) -> str:
    """`value` as an error message prints it: one line, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def one_line(text: str) -> str:
    """`text` fit for a log line, a terminal and JSON: no control characters, no lone surrogates, at most 400 characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:400]


class Fields:
    """One JSON object at `where` (dotted, empty for the root).

    names: the keys it must have. optional: those it may have. closed: other keys are refused.
    """

    def __init__(
        self, value: object, where: str, names: Collection[str], optional: Collection[str] = (), *, closed: bool = True
    ) -> None:
        self.where = where
        if not isinstance(value, Mapping):
            raise BadArtifact(f"{where or 'the file'}: {shown(value)} is not a JSON object; publish the artifact again")
        self.value: Mapping[str, Any] = value
        if missing := sorted(set(names) - set(value)):
            self.refuse(missing[0], "is missing")
        if closed and (unknown := sorted(set(value) - set(names) - set(optional))):
            raise BadArtifact(f"{where or 'the file'}: unknown field {shown(unknown[0])}; publish the artifact again")

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise BadArtifact for the field `name`."""
        raise BadArtifact(f"{self.path(name)}: {why}; publish the artifact again")

    def path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def child(self, name: str, names: Collection[str], optional: Collection[str] = ()) -> Fields:
        return Fields(self.value[name], self.path(name), names, optional)

    def rows(
        self, name: str, names: Collection[str], optional: Collection[str] = (), *, closed: bool = True
    ) -> list[Fields]:
        """The objects of a list field."""
        return [
            Fields(item, f"{self.path(name)}[{i}]", names, optional, closed=closed)
            for i, item in enumerate(self.items(name))
        ]

    def items(self, name: str) -> list[Any]:
        value = self.value[name]
        if not isinstance(value, list):
            self.refuse(name, f"{shown(value)} is not a list")
        return value

    def flag(self, name: str) -> bool:
        value = self.value[name]
        if not isinstance(value, bool):
            self.refuse(name, f"{shown(value)} is neither true nor false")
        return value

    def text(self, name: str, pattern: re.Pattern[str] | None = None) -> str:
        return self._text(name, self.value[name], pattern)

    def texts(self, name: str, pattern: re.Pattern[str] | None = None) -> list[str]:
        """A list of strings, each different from the others."""
        values = [self._text(name, item, pattern) for item in self.items(name)]
        if len(set(values)) != len(values):
            self.refuse(name, "holds the same value twice")
        return values

    def table(self, name: str, pattern: re.Pattern[str] | None = None) -> dict[str, str]:
        """An object whose keys are free and whose values are strings."""
        outer = Fields(self.value[name], self.path(name), (), closed=False)
        return {key: outer.text(key, pattern) for key in outer.value}

    def choice(self, name: str, options: Collection[str]) -> str:
        value = self.value[name]
        if not isinstance(value, str) or value not in options:
            self.refuse(name, f"{shown(value)} is not one of {', '.join(options)}")
        return value

    def integer(self, name: str, low: int, high: int = 2**31 - 1) -> int:
        return self._integer(name, self.value[name], low, high)

    def integers(self, name: str, low: int, high: int) -> list[int]:
        return [self._integer(name, item, low, high) for item in self.items(name)]

    def number(self, name: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number in the closed interval [low, high]."""
        value = self.value[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
            self.refuse(name, f"{shown(value)} is not a number")
        if not max(low, -1e300) <= value <= min(high, 1e300):  # compared, not converted: an int may exceed every float
            self.refuse(name, f"{shown(value)} is outside {low:g}..{high:g}")
        return float(value)

    def probability(self, name: str) -> float:
        """A number in the open interval (0, 1)."""
        value = self.number(name)
        if not 0.0 < value < 1.0:
            self.refuse(name, f"{shown(value)} is outside the open interval (0, 1)")
        return value

    def _text(self, name: str, value: object, pattern: re.Pattern[str] | None) -> str:
        if not isinstance(value, str) or not value:
            self.refuse(name, f"{shown(value)} is not a non-empty string")
        if pattern is not None and not pattern.fullmatch(value):
            self.refuse(name, f"{shown(value)} does not have the form {pattern.pattern}")
        return value

    def _integer(self, name: str, value: object, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(name, f"{shown(value)} is not an integer")
        if not low <= value <= high:
            self.refuse(name, f"{shown(value)} is outside {low}..{high}")
        return value
