"""A model by meaning: what decides its answers, apart from how it is stored and where it runs. And in what two differ, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ModelMeaning", "differences"]

ABSENT = "absent"
WORDS = {  # for each digest but the configuration's, whose fields are named
    "weights": "other weights",
    "tokenizer": "another tokenizer",
    "chat_template": "another chat template",
    "end_tokens": "other end tokens",
}


@dataclass(frozen=True)
class ModelMeaning:
    """Digests (hex) of the five parts; equal where all five are. `merasteer.engine.meaning.of` makes one of a loaded model.

    configuration: the fields behind `config`, JSON values, so that a difference can be named; empty where they were not kept.
    """

    weights: str
    config: str
    tokenizer: str
    chat_template: str
    end_tokens: str
    configuration: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


def differences(tested: ModelMeaning, here: ModelMeaning) -> tuple[str, ...]:
    """What differs, one phrase each, fields of the configuration by name; empty where the two mean the same."""
    found = [words for part, words in WORDS.items() if getattr(tested, part) != getattr(here, part)]
    if tested.config == here.config:
        return tuple(found)
    if not tested.configuration or not here.configuration:
        return (*found, "another configuration")
    one, two = dict(_leaves(tested.configuration)), dict(_leaves(here.configuration))
    fields = [name for name in sorted({*one, *two}) if one.get(name, ABSENT) != two.get(name, ABSENT)]
    return (*found, *(f"{name}: {one.get(name, ABSENT)!r} then, {two.get(name, ABSENT)!r} here" for name in fields))


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by dotted names."""
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", inner
