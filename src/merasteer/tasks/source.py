"""The [data] table of a task file to a DataSource."""

from __future__ import annotations

import re

from merasteer.tasks.prompts import fields_of
from merasteer.tasks.rows import SUFFIXES, suffix_of
from merasteer.tasks.table import Table, shown
from merasteer.types import DataSource

__all__ = ["SOURCE_KEYS", "source"]

SOURCE_KEYS = ("path", "hub", "split", "config", "label", "label_index", "fields", "where")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def source(data: Table, template: str) -> DataSource:
    """The rows' place and their columns. A path is relative to the task file. Raises BadTask."""
    path, hub, split = (data.get(key, str) for key in ("path", "hub", "split"))
    label = data.text("label", "name the column of the labels") if "label" in data.values else "label"
    if (path is None) == (hub is None):
        data.fail("path", f"{'neither path nor' if path is None else 'both path and'} hub given; give one of them")
    for key in ("split", "config"):
        if key in data.values and hub is None:
            data.fail(key, f"{shown(data.values[key])} is given with path; it belongs to hub, remove it")
    if hub is not None and not _HUB_NAME.fullmatch(hub):
        data.fail("hub", f"{shown(hub)} is not owner/name; write it as the hub does")
    if path is not None and any(ord(letter) < 32 for letter in path):
        data.fail("path", f"{shown(path)} holds a control character; rename the file")
    if path is not None and suffix_of(path) is None:
        data.fail("path", f"{shown(path)} ends in none of {', '.join(SUFFIXES)}; convert the file")
    names = fields_of(template)
    table = data.table("fields", names)
    fields = {name: table.text(name, "name the column of this field") for name in table.values}
    for name in names:
        if fields.get(name, name) == label:
            data.fail(
                "label", f"{shown(label)} is also a field of the template, which would show the answer; use another"
            )
    return DataSource(
        label=label,
        path=None if path is None else data.file.parent / path,
        hub=hub,
        split=split,
        config=_config(data),
        fields=fields,
        where=_where(data),
        label_index=bool(data.get("label_index", bool)),
    )


def _config(data: Table) -> tuple[str, ...]:
    """One name, or a list of names."""
    if "config" not in data.values:
        return ()
    remedy = "give the name of a configuration, or a list of names"
    if isinstance(data.values["config"], str):
        return (data.text("config", remedy),)
    return data.strings("config", 1, remedy)


def _where(data: Table) -> dict[str, tuple[str | int | bool, ...]]:
    """Column -> the values that count: one, or a list."""
    given = data.get("where", dict) or {}
    table = Table(data.file, given, tuple(given), f"{data.prefix}where.")
    found = {}
    for column, value in given.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(one) in (str, int, bool) for one in values):
            table.fail(column, f"{shown(value)} is no value to compare with; give a string, a whole number, or a list")
        found[column] = tuple(values)
    return found
