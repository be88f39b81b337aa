"""One JSON object for each line, whatever is logged."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest
from mera_server.logs import JsonFormatter, adopt, current_request, fields, set_up


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("mera", "merasteer", "uvicorn")}
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    for name, found in levels.items():
        logging.getLogger(name).setLevel(found)


def line(message: str, *arguments: object, **extra: object) -> dict[str, object]:
    record = logging.getLogger("mera.x").makeRecord(
        "mera.x", logging.INFO, "", 0, message, arguments, None, extra=fields(**extra)
    )
    text = JsonFormatter().format(record)
    assert "\n" not in text
    found: dict[str, object] = json.loads(text)
    return found


def test_a_line_is_one_object_in_ascii() -> None:
    found = line('a "quoted"\n%s', "é\u2028", status=200, key=None)
    assert found.pop("time").endswith("+00:00")  # type: ignore[attr-defined]
    assert found == {
        "level": "info", "logger": "mera.x", "message": 'a "quoted"\né\u2028', "status": 200, "key": None,
    }  # fmt: skip


def test_the_request_is_named_inside_it_alone() -> None:
    token = current_request.set("mine")
    assert line("x")["request_id"] == "mine"
    current_request.reset(token)
    assert "request_id" not in line("x")


def test_a_trace_is_a_field() -> None:
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        record = logging.LogRecord("mera", logging.ERROR, "", 0, "it broke", (), sys.exc_info())
    found = json.loads(JsonFormatter().format(record))
    assert found["message"] == "it broke"
    assert "ZeroDivisionError: why" in found["trace"]


def test_everything_goes_to_stderr_in_one_form(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("some_library")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    set_up("info", "json")
    adopt("some_library")
    logging.getLogger("mera.access").info("one")
    logging.getLogger("mera.access").debug("none")
    library.warning("two")
    library.info("none")
    told = capsys.readouterr()
    assert [json.loads(text)["message"] for text in told.err.splitlines()] == ["one", "two"]
    assert not told.out
    set_up("info", "text")
    logging.getLogger("mera.access").info("three")
    assert capsys.readouterr().err.endswith(" INFO mera.access three\n")
