"""docs/api.md: every block is run against a real server and gives what is shown; every field, error and route there is has its line.

The OpenAPI description's examples, from `mera_server.examples`, are held to the same.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mera_server import examples
from mera_server.neutral import TABLE, of_body
from mera_server.told import body_of

from merasteer.errors import MeraError

PARTS = {  # what the page calls a body
    "Parameters": "`parameters`",
    "GenerateBody": "`/generate`",
    "LabelsBody": "`/classify/{task}`",
    "LabelParameters": "its `parameters`",
    "CompletionBody": "completions",
    "ChatBody": "chats",
    "Message": "`messages`",
    "TextPart": "their parts",
    "StreamOptions": "`stream_options`",
}
ADDRESS = "http://127.0.0.1:8000"
Differs = Callable[[Any, Any], str | None]


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def openapi(server: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server}/openapi.json").json()
    return found


def events(text: str) -> list[Any]:
    """The data of server-sent events; a line `…` stands for some that are left out."""
    return [
        [line[: line.index("{")], json.loads(line[line.index("{") :])]
        if line.startswith("data:") and "{" in line
        else line
        for line in text.splitlines()
        if line
    ]


def test_every_curl_block_gives_what_is_shown(page: str, server: str, blocks: Any, differs: Differs) -> None:
    found = [block for block in blocks(page) if block.language == "sh"]
    assert len(found) >= 10
    for block in found:
        code = ["/bin/sh", "-ec", block.code.replace(ADDRESS, server)]
        ran = subprocess.run(code, capture_output=True, text=True, timeout=60, check=True)
        read = json.loads if block.kind == "json" else events
        wrong = differs(read(block.output), read(ran.stdout))
        assert wrong is None, f"{block.code}\n{wrong}\n{ran.stdout}"


def test_every_python_block_prints_what_is_shown(
    page: str, server: str, blocks: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    found = [block for block in blocks(page) if block.language == "python"]
    assert len(found) >= 2
    for block in found:
        exec(compile(block.code.replace(ADDRESS, server), "docs/api.md", "exec"), {})
        assert (block.kind, capsys.readouterr().out) == ("text", block.output)


def test_every_field_of_every_schema_has_its_line(page: str, openapi: dict[str, Any]) -> None:
    listed = {name: {f for row in of_body(name) for f in row.fields} for name in openapi["components"]["schemas"]}
    listed["StreamBody"] = listed["GenerateBody"]  # which it extends
    told: dict[str, set[str]] = {}
    for head, rows in re.findall(r"^\| field of (.*?) \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE):
        named = {name for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
        schemas = re.findall(r"`(\w+)`", head)
        assert not told.keys() & set(schemas), head
        assert named == {
            name
            for schema in schemas
            for name in openapi["components"]["schemas"][schema]["properties"]
            if name not in listed[schema]
        }, head
        told |= dict.fromkeys(schemas, named)
    assert told.keys() == {name for name, schema in openapi["components"]["schemas"].items() if "properties" in schema}


def test_the_table_of_neutral_values_is_the_one_that_the_server_goes_by(page: str) -> None:
    shown = (
        page.split("| field | of | takes | why nothing else |\n|---|---|---|---|\n")[1].split("\n\n")[0].splitlines()
    )
    assert shown == [
        f"| {', '.join(f'`{name}`' for name in row.fields)} | {', '.join(PARTS[body] for body in row.bodies)} "
        f"| {row.told} | {row.why} |"
        for row in TABLE
    ]


def test_every_route_is_listed(page: str, openapi: dict[str, Any]) -> None:
    table = page.split("| route |")[1].split("\n\n")[0]
    listed = set(re.findall(r"`((?:GET|POST) /\S*)`", table))
    described = {f"{method.upper()} {path}" for path, methods in openapi["paths"].items() for method in methods}
    assert listed == described | {"GET /openapi.json"}


def test_every_error_is_listed(page: str) -> None:
    def tree(kind: type[MeraError]) -> Iterator[tuple[str, int]]:
        yield kind.code, kind.status
        for child in kind.__subclasses__():
            if child.__module__.startswith(("merasteer.", "mera_server.")):
                yield from tree(child)

    rows = re.findall(r"^\| (\d{3}) \| (`.*?`) \|", page.split("| status |")[1], re.MULTILINE)
    listed = [(code, int(status)) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)]
    assert sorted(listed) == sorted(tree(MeraError))


def place(path: str) -> str:
    """The path with the sample values in it."""
    for name, value in examples.PLACES.items():
        path = path.replace(f"{{{name}}}", value)
    return path


def test_every_sample_body_is_answered_and_as_the_sample_says(
    server: str, openapi: dict[str, Any], differs: Differs
) -> None:
    assert set(examples.REQUESTS) == {
        path for path, methods in openapi["paths"].items() if "requestBody" in methods.get("post", {})
    }
    for path, bodies in examples.REQUESTS.items():
        content = openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert set(content["examples"]) == set(bodies)
        for name, (summary, body) in bodies.items():
            assert content["examples"][name] == {"summary": summary, "value": body}
            response = httpx.post(server + place(path), json=body)
            assert response.status_code == 200, (path, name, response.text)
            shown = examples.ANSWERS.get(path, ("", None))
            assert shown[0] != name or differs(shown[1], response.json()) is None, response.text
    assert all(examples.REQUESTS[path].get(name) for path, (name, _) in examples.ANSWERS.items())
    for name, value in examples.PLACES.items():
        path = next(path for path in openapi["paths"] if f"{{{name}}}" in path)
        assert value in place(path)
        assert "post" in openapi["paths"][path] or httpx.get(server + place(path)).status_code == 200


def test_every_sample_error_is_one_there_is(openapi: dict[str, Any]) -> None:
    def codes(kind: type[MeraError]) -> Iterator[tuple[str, str]]:
        yield str(kind.status), kind.code
        for child in kind.__subclasses__():
            yield from codes(child)

    assert {(status, code) for status, (code, _) in examples.ERRORS.items()} <= set(codes(MeraError))
    for path, methods in openapi["paths"].items():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status[0] in "45":
                    shown = response["content"]["application/json"]["example"]
                    assert shown == body_of(examples.example_of(status, path), path)
