"""A text file line by line, in UTF-8 and nothing else, and JSON of one object a line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merasteer.errors import BadTask
from merasteer.tasks.row import Row, Wanted, refuse_repeated

__all__ = ["decoded", "jsonl_rows", "lines"]

_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}
_CONVERT = "save it as UTF-8, as in: iconv -f {} -t UTF-8"


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line with its end). Lines end at \\n only: str.splitlines would cut at control characters in a text."""
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            yield f"{path}: line {number}", decoded(f"{path}: line {number}", raw, first=number == 1)


def decoded(where: str, raw: bytes, *, first: bool = True) -> str:
    """The text of `raw`; first: its byte-order mark is no content. Raises BadTask for anything but UTF-8."""
    mark = next((name for mark, name in _MARKS.items() if first and raw.startswith(mark)), None)
    if mark is not None:
        raise BadTask(f"{where}: {mark}, not UTF-8; {_CONVERT.format(mark)}")
    if b"\0" in raw:
        remedy = _CONVERT.format("UTF-16")
        raise BadTask(f"{where}: a NUL byte, so UTF-16 or no text at all; {remedy}, or take the byte out")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        remedy = _CONVERT.format("LATIN1")
        raise BadTask(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); {remedy}") from error
    return text.removeprefix("\ufeff") if first else text


class _Repeated(dict[str, Any]):
    """An object in which a name occurs twice."""

    names: tuple[str, ...] = ()


def jsonl_rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    """The rows of a file of JSON objects, one a line; blank lines count for nothing. Raises BadTask."""
    for where, line in lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise BadTask(f"{where}: not JSON ({getattr(error, 'msg', error)}); give one object a line") from error
        if not isinstance(values, dict):
            raise BadTask(f"{where}: JSON, but not an object; give one object a line")
        if isinstance(values, _Repeated):
            refuse_repeated(where, values.names, wanted)
        yield Row(where, values)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = _Repeated(found)
    repeated.names = tuple(name for name, _ in pairs)
    return repeated
