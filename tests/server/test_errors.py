"""Every error of ours has a code, a status and the one body; every foreign error becomes one of ours."""

from __future__ import annotations

import json

import pytest
from mera_server.errors import error_response, foreign
from starlette.exceptions import HTTPException

from merasteer import errors
from merasteer.errors import MeraError

CLASSES = [getattr(errors, name) for name in errors.__all__]
STATUSES = {400, 401, 403, 404, 405, 413, 422, 429, 499, 500, 503}


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_mapped(kind: type[MeraError]) -> None:
    response = error_response(foreign(kind("field: wrong; mend it")))
    assert response.status_code == kind.status
    assert response.status_code in STATUSES
    assert json.loads(bytes(response.body))["error"] == {"code": kind.code, "message": "field: wrong; mend it"}


def test_only_the_root_is_an_internal_error() -> None:
    assert [kind for kind in CLASSES if kind.code == "internal_error"] == [MeraError]
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (HTTPException(404), 404, "not_found"),
        (HTTPException(405, headers={"Allow": "POST"}), 405, "method_not_allowed"),
        (HTTPException(413), 413, "too_large"),
        (HTTPException(400), 422, "invalid_input"),
        (HTTPException(500), 500, "internal_error"),
        (ZeroDivisionError("secret"), 500, "internal_error"),
    ],
)
def test_foreign_errors(error: Exception, status: int, code: str) -> None:
    found = foreign(error)
    assert (found.status, found.code) == (status, code)
    assert "secret" not in str(found)


def test_overload_says_when_to_come_back() -> None:
    assert error_response(errors.Overloaded("engine: full")).headers["retry-after"] == "1"
