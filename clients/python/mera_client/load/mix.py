"""What is asked: entries with weights, from a TOML file or from options; drawn with a seed, the same draws for the same seed."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from mera_client._errors import InvalidInput
from mera_client._types import Inputs, Steering
from mera_client.cli.rows import inputs_of, read

Kind = Literal["generate", "stream", "classify"]
OPTIONS = ("max_new_tokens", "temperature", "top_p", "top_k", "stop", "mera_details")
STEERING = tuple(item.name for item in fields(Steering))
TYPES: Mapping[str, Any] = {
    "name": str,
    "weight": (int, float),
    "kind": str,
    "prompts": list,
    "file": str,
    "columns": list,
    "batch": int,
}
KEYS = (*TYPES, *OPTIONS, *STEERING)


@dataclass(frozen=True)
class Entry:
    """One sort of request. options: of `generate`. batch: inputs of one classify request."""

    name: str
    prompts: tuple[Inputs, ...]
    weight: float = 1.0
    kind: Kind = "generate"
    batch: int = 8
    options: Mapping[str, Any] = field(default_factory=dict)
    steering: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def refuse(key: str, remedy: str) -> None:
            raise InvalidInput(f"mix.{self.name}.{key}: {remedy}")

        if self.kind not in get_args(Kind):
            refuse("kind", f"give {', '.join(get_args(Kind))}")
        if not 0 < self.weight < float("inf"):
            refuse("weight", "give a number above 0")
        if not self.prompts:
            refuse("prompts", "none; give prompts or file")
        if self.kind == "classify" and not (self.steering.get("task") and 1 <= self.batch <= 256 and not self.options):
            refuse("kind", f"classify needs a task, a batch from 1 to 256, and none of {', '.join(OPTIONS)}")


@dataclass(frozen=True)
class Ask:
    """One request: its entry, its inputs (one, but for classify), its seed."""

    entry: Entry
    inputs: tuple[Inputs, ...]
    seed: int


def asks(mix: tuple[Entry, ...], seed: int) -> Iterator[Ask]:
    """Requests without end."""
    draw = random.Random(seed)
    weights = [entry.weight for entry in mix]
    while True:
        (entry,) = draw.choices(mix, weights)
        inputs = draw.choices(entry.prompts, k=entry.batch if entry.kind == "classify" else 1)
        yield Ask(entry, tuple(inputs), draw.randrange(2**32))


def read_mix(path: Path) -> tuple[Entry, ...]:
    """The entries of a TOML file, its `[[mix]]` tables. Raises InvalidInput naming entry and key."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("mix")
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InvalidInput(f"{path}: {error}") from None
    if not isinstance(tables, list) or not tables:
        raise InvalidInput(f"{path}: holds no [[mix]]")
    return tuple(entry_of(table, f"entry {i + 1}", path.parent) for i, table in enumerate(tables))


def entry_of(table: Mapping[str, Any], name: str, folder: Path = Path()) -> Entry:
    """One entry. file: rows of .csv or .jsonl beside the mix. columns: of these rows, as `inputs_of` takes them."""
    unknown = [key for key in table if key not in KEYS]
    if unknown:
        raise InvalidInput(f"mix.{table.get('name', name)}.{unknown[0]}: unknown key; there are {', '.join(KEYS)}")
    for key, value in table.items():
        wanted = TYPES.get(key, object)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise InvalidInput(f"mix.{table.get('name', name)}.{key}: {type(value).__name__} does not belong there")
    prompts = list(table.get("prompts", ()))
    if not all(isinstance(prompt, str | dict) for prompt in prompts):
        raise InvalidInput(f"mix.{table.get('name', name)}.prompts: give strings, or tables of the template's fields")
    if "columns" in table and "file" not in table:
        raise InvalidInput(f"mix.{table.get('name', name)}.columns: are those of a file; give file too")
    if "file" in table:
        path = folder / table["file"]
        prompts += inputs_of(path, read(path), table.get("columns", ()))
    plain = {key: table[key] for key in ("weight", "kind", "batch") if key in table}
    options = {key: table[key] for key in OPTIONS if key in table}
    steering = {key: table[key] for key in STEERING if key in table}
    return Entry(table.get("name", name), tuple(prompts), options=options, steering=steering, **plain)
