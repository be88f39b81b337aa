"""JSON to dataclasses: keys that a class does not name are ignored, keys without a default are required."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mera_client._errors import BadResponse

T = TypeVar("T")


def decode(kind: type[T], value: object, where: str = "answer") -> T:
    """`value` as a `kind`; raises BadResponse naming the place where it does not fit."""
    result: T = _decode(kind, value, where)
    return result


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):  # only X | None is used
        return None if value is None else _decode(args[0], value, where)
    if origin is Literal:  # a newer server may know more values
        return _scalar(str, value, where)
    if origin is tuple:
        return tuple(_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(_scalar(list, value, where)))
    if origin is Mapping:
        return {key: _decode(args[1], item, f"{where}.{key}") for key, item in _scalar(dict, value, where).items()}
    if is_dataclass(kind):
        return _record(kind, _scalar(dict, value, where), where)
    return _scalar(kind, value, where)


def _record(kind: Any, value: dict[str, Any], where: str) -> Any:
    known = {}
    for name, (hint, required) in _schema(kind).items():
        if name in value:
            known[name] = _decode(hint, value[name], f"{where}.{name}")
        elif required:
            raise BadResponse(f"{where}: {name} is missing; is this a mera-server of the same version?")
    return kind(**known)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadResponse(f"{where}: {type(value).__name__} where {kind.__name__} belongs; is this a mera-server?")
    return value


@cache
def _schema(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Field -> (type, required)."""
    hints = get_type_hints(kind)
    return {f.name: (hints[f.name], f.default is MISSING and f.default_factory is MISSING) for f in fields(kind)}
