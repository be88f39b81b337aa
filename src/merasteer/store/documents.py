"""JSON as the store reads and writes it: no duplicate keys, no NaN, one canonical form to hash."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from merasteer.errors import BadArtifact

__all__ = ["canonical", "dump", "parse"]


def canonical(value: object) -> bytes:
    """The bytes that a digest is taken of: sorted keys, separators `,` `:`, UTF-8. Raises BadArtifact where impossible."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadArtifact(
            f"not plain JSON ({error}); use str, int, float, bool, None, list and dict of finite values"
        ) from error


def dump(value: object) -> bytes:
    """The same value laid out for people; equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def parse(data: bytes) -> Any:
    """The value that `data` holds. Raises BadArtifact for what is not strict JSON in UTF-8."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadArtifact(f"not readable as JSON ({error}); publish the artifact again") from error
    canonical(value)  # refuses 1e999 and lone surrogates, which json.loads lets through
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
