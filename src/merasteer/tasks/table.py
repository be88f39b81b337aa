"""One TOML table read strictly: every value is checked, a complaint names file, key, value and remedy in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import Repr
from typing import Any, NoReturn, TypeVar

from merasteer.errors import BadTask

__all__ = ["Table", "listed", "shown"]

T = TypeVar("T")
C = TypeVar("C", bound=str)

_KINDS = {str: "a string", int: "a whole number", bool: "true or false", list: "an array", dict: "a table"}
_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 60


def shown(value: object) -> str:
    """The value for an error message: one line, shortened."""
    return _REPR.repr(value).replace("\n", " ")


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for an error message, between commas: shortened, and of many only the first."""
    few = ", ".join(
        name if name.isprintable() and len(name) <= _REPR.maxstring else shown(name) for name in names[:most]
    )
    return f"{few} and {len(names) - most} more" if len(names) > most else few


class Table:
    """A table of a task file. Unknown keys are refused at construction, before a missing one can hide a misspelling."""

    def __init__(self, file: Path, values: Mapping[str, Any], known: tuple[str, ...], prefix: str = "") -> None:
        self.file, self.values, self.prefix = file, values, prefix
        for key in values:
            if key not in known:
                self.fail(key, f"unknown key; known are {', '.join(known)}")

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raises BadTask: file, dotted key, problem."""
        raise BadTask(f"{self.file}: {self.prefix}{shown(key)[1:-1]}: {problem}")

    def get(self, key: str, kind: type[T]) -> T | None:
        """The value of `key`, None when absent. The type must be exact: true is no number."""
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) is not kind:
            self.fail(key, f"{shown(value)} is not {_KINDS[kind]}")
        return value

    def table(self, key: str, known: tuple[str, ...]) -> Table:
        """The table under `key`, empty when absent."""
        return Table(self.file, self.get(key, dict) or {}, known, f"{self.prefix}{key}.")

    def text(self, key: str, remedy: str) -> str:
        """A required string that is not blank."""
        value = self.get(key, str)
        if value is None or not value.strip():
            self.fail(key, f"missing or blank; {remedy}")
        return value

    def integer(self, key: str, default: int, least: int) -> int:
        """A whole number of at least `least`."""
        value = self.get(key, int)
        if value is None:
            return default
        if value < least:
            self.fail(key, f"{shown(value)} is below {least}; give {least} or more")
        return value

    def choice(self, key: str, known: tuple[C, ...]) -> C | None:
        """One of the words in `known`, None when absent."""
        value = self.get(key, str)
        word = next((word for word in known if word == value), None)
        if value is not None and word is None:
            self.fail(key, f"{shown(value)} is unknown; use {' or '.join(known)}")
        return word

    def strings(self, key: str, least: int, remedy: str, *, numbers: bool = False) -> tuple[str, ...]:
        """At least `least` distinct strings, none of them blank. numbers: a whole number counts as it is written."""
        values = [str(one) if numbers and type(one) is int else one for one in self.get(key, list) or []]
        for value in values:
            if type(value) is not str or not value.strip():
                self.fail(key, f"{shown(value)} is not a string with text; {remedy}")
            if values.count(value) > 1:
                self.fail(key, f"{shown(value)} occurs twice; remove one")
        if len(values) < least:
            self.fail(key, f"has {len(values)} entries, at least {least} needed; {remedy}")
        return tuple(values)
