"""The client's types are the server's OpenAPI: every field of every reply, by name, type and nullability, and every field that is sent.

It fails when either side gains or loses a field, and when the server gains a reply that no type here stands for.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import mera_client
import pytest
from mera_client import (
    Answer,
    Classification,
    Classified,
    Client,
    Details,
    Generation,
    Guarantee,
    Mera,
    PredictedError,
    ProbeInfo,
    Steering,
    SteeringCounts,
    Step,
    StepError,
    StepTrace,
    TaskInfo,
    Token,
    TokenEvent,
    TokenTrace,
    Usage,
)
from mera_server.app import create_app
from mera_server.neutral import of_body

# Several schemas: the client reads any of them into one type, so that what one lacks may be None.
REPLIES: Mapping[type, tuple[str, ...]] = {
    Generation: ("GenerateReply",),
    Details: ("DetailsReply", "StreamDetailsReply"),
    Token: ("TokenReply",),
    Mera: ("MeraReply", "BriefReply"),
    PredictedError: ("PredictedErrorReply",),
    SteeringCounts: ("CountsReply",),
    Guarantee: ("GuaranteeReply",),
    Answer: ("AnswerReply",),
    TokenTrace: ("TraceReply",),
    TokenEvent: ("StreamReply",),
    Step: ("StepReply",),
    StepError: ("ErrorsReply",),
    StepTrace: ("StepTraceReply",),
    Classification: ("ClassifyReply",),
    Classified: ("ClassifiedReply",),
    Usage: ("UsageReply",),
    TaskInfo: ("TaskReply",),
}
UNWRAPPED = {"TasksReply", "ErrorReply", "ErrorDetail"}  # `tasks()` gives what is in it; the errors are exceptions
OF_OTHERS = {"LabelReply", "TokenizeReply", "PieceReply", "DetokenizeReply"}  # what other projects' clients ask for


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    described: dict[str, Any] = create_app().openapi()
    return described


@pytest.fixture(scope="module")
def schemas(openapi: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = openapi["components"]["schemas"]
    return found


def referred(value: Any) -> Iterator[str]:
    """The names of the schemas that a piece of OpenAPI points to."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rpartition("/")[2]
        for part in value.values():
            yield from referred(part)
    elif isinstance(value, list):
        for part in value:
            yield from referred(part)


def test_every_reply_of_the_server_has_its_type(openapi, schemas):
    native = [
        part for path, part in openapi["paths"].items() if not path.startswith("/v1/")
    ]  # /v1 is OpenAI's client's
    pending = list(referred([method["responses"] for path in native for method in path.values()]))
    reached: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += referred(schemas[name])
    assert reached == {name for names in REPLIES.values() for name in names} | UNWRAPPED | OF_OTHERS


def test_every_type_of_the_client_is_a_reply_or_a_question():
    public = {value for name in mera_client.__all__ if is_dataclass(value := getattr(mera_client, name))}
    assert public == {*REPLIES, Steering, ProbeInfo, mera_client.Retries}


@pytest.mark.parametrize("kind", REPLIES, ids=lambda kind: kind.__name__)
def test_fields_are_the_servers(schemas, kind):
    theirs = [schemas[name]["properties"] for name in REPLIES[kind]]
    required = [set(schemas[name].get("required", ())) for name in REPLIES[kind]]
    hints = get_type_hints(kind)
    assert {field.name for field in fields(kind)} == set().union(*theirs)
    for field in fields(kind):
        described = [properties[field.name] for properties in theirs if field.name in properties]
        everywhere = len(described) == len(theirs)
        nullable = any(part == {"type": "null"} for schema in described for part in options(schema))
        assert (NoneType in get_args(hints[field.name])) == (nullable or not everywhere), field.name
        for schema in described:
            fits(hints[field.name], schema, f"{kind.__name__}.{field.name}")
        if field.default is MISSING:  # the client insists on it; a default other than null is always sent
            sent = [field.name in names for names in required]
            assert all(sent) or all(schema.get("default") is not None for schema in described), field.name


def options(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What a property may be; titles and descriptions are left out."""
    found = schema.get("anyOf", [schema])
    return [{key: part[key] for key in part if key not in ("title", "description", "default")} for part in found]


PLAIN = {int: "integer", float: "number", str: "string", bool: "boolean"}


def fits(hint: Any, schema: dict[str, Any], where: str) -> None:
    """Every option of the schema, null aside, is what the hint says."""
    (hint,) = (
        [part for part in get_args(hint) if part is not NoneType] if get_origin(hint) in (Union, UnionType) else [hint]
    )
    for option in options(schema):
        if option == {"type": "null"}:
            continue
        if is_dataclass(hint):
            assert option["$ref"].rpartition("/")[2] in REPLIES[hint], where
        elif get_origin(hint) is Literal:
            assert set(get_args(hint)) == set(option["enum"]) if "enum" in option else option["type"] == "string", where
        elif get_origin(hint) is tuple:
            assert option["type"] == "array", where
            fits(get_args(hint)[0], option["items"], where)
        elif get_origin(hint) is Mapping:
            assert option["type"] == "object", where
            fits(get_args(hint)[1], option["additionalProperties"], where)
        else:
            assert option["type"] == PLAIN[hint], where


def test_everything_that_can_be_asked_for_can_be_sent(schemas):
    listed = {name for body in ("Parameters", "GenerateBody") for row in of_body(body) for name in row.fields}
    left = {"do_sample", "ignore_eos"}  # a temperature says the one, benchmarks of any server the other
    parameters = set(schemas["Parameters"]["properties"]) - listed - left
    body = set(schemas["GenerateBody"]["properties"]) - {"parameters", "stream"} - listed
    generate = set(inspect.signature(Client.generate).parameters) - {"self", "timeout"}
    assert generate == parameters | (body - {"details"}) | {"mera_details"}  # `details` is a name on both levels
    assert set(inspect.signature(Client.generate_stream).parameters) == generate - {"details"} | {"self", "timeout"}
    classify = set(inspect.signature(Client.classify).parameters) - {"self", "timeout"}
    assert classify == set(schemas["ClassifyBody"]["properties"])


def test_steering_is_the_servers(schemas):
    assert {field.name for field in fields(Steering)} == set(schemas["Steering"]["properties"])
    described = schemas["Steering"]["properties"]["method"]["anyOf"]
    methods = next(option["enum"] for option in described if "enum" in option)
    (method,) = (part for part in get_args(get_type_hints(Steering)["method"]) if part is not NoneType)
    assert set(get_args(method)) == set(methods)


def test_the_levels_of_detail_are_the_servers(schemas):
    described = schemas["GenerateBody"]["properties"]["details"]["anyOf"]
    levels = next(option["enum"] for option in described if "enum" in option)
    assert set(get_args(get_type_hints(Client.generate)["mera_details"])) == set(levels)


def test_an_artifacts_summary_has_the_fields_of_probe_info(address):
    """`/probes` answers with plain mappings: the real ones, loaded, are compared."""
    with Client(address) as client:
        found = client.probes()
    assert found
    assert all(set(probe.raw) == {field.name for field in fields(ProbeInfo)} - {"raw"} for probe in found)


def test_the_client_knows_every_reason_of_the_server() -> None:
    from mera_client import _types
    from mera_server import replies

    assert get_args(_types.Reason) == get_args(replies.Reason)
