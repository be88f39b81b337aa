"""Prompt templates: literal text with a row's fields in braces. `{choices}` turns a list into lettered lines."""

from __future__ import annotations

import string
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from merasteer.errors import InvalidInput, UnknownField

__all__ = ["CHOICES", "fields_of", "in_order", "literals_of", "matches", "render", "slots_of"]

CHOICES = "choices"


def fields_of(template: str) -> tuple[str, ...]:
    """Names of the template's fields in order of first use. Raises InvalidInput where the template is malformed.

    >>> fields_of("{question} {{not a field}} {choices}")
    ('question', 'choices')
    """
    return tuple(dict.fromkeys(_split(template)[1]))


def render(template: str, fields: Mapping[str, Any]) -> str:
    """The prompt. Exactly the template's fields must be given; braces in their values are text.

    Raises InvalidInput, naming the field and never its value, which may be a client's; UnknownField for one too many.

    >>> render("{question} {choices}", {"question": "2 + 2?", "choices": ["3", "4"]})
    '2 + 2? A. 3\\nB. 4'
    """
    literals, names = _split(template)
    for name in fields:
        if name not in names:
            raise UnknownField(
                f"field {str(name)[:40]!r}: not in the template; give only {', '.join(dict.fromkeys(names))}"
            )
    values = {name: _value(name, fields) for name in names}
    return literals[0] + "".join(values[name] + after for name, after in zip(names, literals[1:], strict=True))


def matches(template: str, text: str) -> bool:
    """Whether `text` could be a rendering: the template's literal parts in order, the first and last at the very ends.

    >>> matches("Is {text} spam?", "Is it spam?")
    True
    """
    return in_order(literals_of(template), text)


def literals_of(template: str) -> tuple[str, ...]:
    """The literal parts around the fields, one more than there are fields. Raises InvalidInput as `fields_of` does.

    >>> literals_of("Is {text} {{spam}}?")
    ('Is ', ' {spam}?')
    """
    return _split(template)[0]


def slots_of(template: str) -> tuple[str, ...]:
    """The field in each place of the template, one less than there are literal parts.

    >>> slots_of("{text} or {text}?")
    ('text', 'text')
    """
    return _split(template)[1]


def in_order(literals: tuple[str, ...], text: str) -> bool:
    """Whether `text` holds the parts in order with anything between them, the first and last at the very ends.

    Taking the leftmost occurrence of each part leaves the most room for the rest, so no backtracking is needed.
    """
    if len(literals) == 1:
        return text == literals[0]
    at, end = len(literals[0]), len(text) - len(literals[-1])
    if at > end or not text.startswith(literals[0]) or not text.endswith(literals[-1]):
        return False
    for part in literals[1:-1]:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _value(name: str, fields: Mapping[str, Any]) -> str:
    if name not in fields:
        raise InvalidInput(f"field {name!r}: missing; the template needs it")
    value = fields[name]
    if name == CHOICES:
        value = _lettered(value)
    if not isinstance(value, str):
        raise InvalidInput(f"field {name!r}: is of type {type(value).__name__}; give a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"field {name!r}: holds half of a surrogate pair; give valid Unicode") from None
    return value


def _lettered(options: object) -> str:
    letters = string.ascii_uppercase
    if not isinstance(options, list | tuple) or not all(isinstance(option, str) for option in options):
        raise InvalidInput(f"field {CHOICES!r}: is not a list of strings; give one string for each option")
    if not 1 <= len(options) <= len(letters):
        raise InvalidInput(f"field {CHOICES!r}: has {len(options)} options; give 1 to {len(letters)}")
    return "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=False))


@lru_cache(maxsize=256)
def _split(template: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """n + 1 literal parts and the n fields between them."""
    literals, names = [""], []
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InvalidInput(f"unbalanced braces ({error}); write {{{{ and }}}} for braces that are text") from None
    for literal, name, spec, conversion in pieces:
        literals[-1] += literal
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise InvalidInput(
                f"field {name[:40]!r}: not a simple name; write {{name}} without index, format or conversion"
            )
        names.append(name)
        literals.append("")
    return tuple(literals), tuple(names)
