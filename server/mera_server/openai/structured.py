"""`response_format`: a JSON schema whose one property is an enumeration of the task's labels is answered by the choice among them.

The choice is the one that the task always makes, so that nothing changes but the text of the answer: {"<property>": "<label>"}. Any other
schema would constrain what the model writes, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mera_server.openai.schemas import ChatBody, CompletionBody
from merasteer.errors import Unsupported
from merasteer.types import ServedTask

__all__ = ["Labels", "check_task", "labels_in"]

_REMEDY = "give text, or a json_schema of one object with one required property that enumerates the task's labels"
_PLAIN = frozenset({"title", "description", "default", "$schema", "$defs", "definitions"})  # what constrains nothing
_OBJECT = _PLAIN | {"type", "properties", "required", "additionalProperties"}
_ENUM = _PLAIN | {"type", "enum"}


@dataclass(frozen=True)
class Labels:
    """What a schema asks for: one property, and the labels that it may be."""

    name: str
    labels: frozenset[str]

    def text(self, label: str | None) -> str:
        """The answer that fits the schema."""
        return json.dumps({self.name: label})


def labels_in(body: CompletionBody | ChatBody) -> Labels | None:
    """What the body's `response_format` asks for, None for plain text. Raises Unsupported for everything else."""
    given = body.response_format if isinstance(body, ChatBody) else None
    if given is None or given == {"type": "text"}:
        return None
    place, schema = _schema(given)
    if not isinstance(schema, Mapping):
        raise Unsupported(f"response_format: this form is not implemented here; {_REMEDY}")
    found = _labels(schema)
    if found is None:
        raise Unsupported(f"response_format.{place}: this schema is not implemented here; {_REMEDY}")
    return found


def check_task(asked: Labels, task: ServedTask | None) -> None:
    """Raises Unsupported unless the schema enumerates the labels among which this task chooses."""
    if task is None:
        raise Unsupported(
            "response_format: schemas are answered for a task's labels only; name a task, as <model>:<task> in model"
        )
    if task.choose != "labels":
        raise Unsupported("response_format: this task answers freely, so its label may be missing; leave it out")
    if asked.labels != set(task.labels):
        raise Unsupported(
            f"response_format: its enumeration is not that of this task's labels; give {', '.join(task.labels)}"
        )


def _schema(given: Mapping[str, Any]) -> tuple[str, Any]:
    """Where the schema stands, and the schema: OpenAI's form, or the one that text-generation-inference has."""
    if given.get("type") == "json_schema":
        inner = given.get("json_schema")
        return "json_schema.schema", inner.get("schema") if isinstance(inner, Mapping) else None
    if given.get("type") in ("json", "json_object") and "value" in given:
        return "value", given["value"]
    return "type", None


def _labels(schema: Mapping[str, Any]) -> Labels | None:
    """The one property of a schema and its labels; None where the schema says anything else."""
    properties, required = schema.get("properties"), schema.get("required", [])
    if schema.get("type") != "object" or not schema.keys() <= _OBJECT:
        return None
    if not isinstance(properties, Mapping) or len(properties) != 1 or required not in ([], list(properties)):
        return None
    [(name, described)] = properties.items()
    labels = _enumerated(described, schema)
    return None if labels is None else Labels(name, labels)


def _enumerated(described: Any, schema: Mapping[str, Any]) -> frozenset[str] | None:
    """The values of an enumeration of strings, which may stand among the schema's definitions."""
    if isinstance(described, Mapping) and described.keys() - _PLAIN == {"$ref"}:
        place = str(described["$ref"]).split("/")
        held = schema.get(place[1]) if len(place) == 3 and place[0] == "#" else None
        described = held.get(place[2]) if isinstance(held, Mapping) else None
    if (
        not isinstance(described, Mapping)
        or not described.keys() <= _ENUM
        or described.get("type", "string") != "string"
    ):
        return None
    values = described.get("enum")
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        return None
    return frozenset(values)
