"""What operators read: one JSON object a line, request ids, and never a prompt unless it was asked for."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.loading import Serving
from mera_server.settings import Settings

Ready = Callable[[FastAPI], FastAPI]
Serve = Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]
SECRET = "Xylophone-Quokka"
BODY: dict[str, Any] = {"inputs": SECRET, "parameters": {"max_new_tokens": 3}}


def test_every_line_of_a_server_is_json_and_names_its_request(
    settings: Settings, mera_serve: Serve, tmp_path: Path
) -> None:
    with mera_serve("--port", "0", "--store", str(tmp_path), "--log-format", "json") as (process, address):
        deadline = time.monotonic() + 60
        while httpx.get(f"{address}/health/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for path, body in (("/generate", BODY), ("/generate", {**BODY, SECRET: 1}), (f"/{SECRET}", BODY)):
            httpx.post(f"{address}{path}", json=body, headers={"X-Request-Id": "mine"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        text = process.stderr.read()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    mine = [line for line in lines if line.get("request_id") == "mine"]
    shown = [{name: line[name] for name in ("message", "method", "route", "status", "key")} for line in mine]
    asked = {"message": "request", "method": "POST", "key": None}
    assert shown == [
        {**asked, "route": "/generate", "status": 200},
        {**asked, "route": "/generate", "status": 422},
        {**asked, "route": "unknown", "status": 404},
    ]
    assert all(line["ms"] >= 0 for line in mine)
    assert SECRET not in text


async def test_content_is_logged_when_it_was_asked_for_and_only_then(
    settings: Settings, serving: Serving, ready_app: Ready, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mera")
    for on in (False, True):
        app = ready_app(create_app(settings.model_copy(update={"log_content": on}), loader=lambda _: serving))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            headers = {"X-Request-Id": "mine"}
            answer = (await client.post("/generate", json=BODY, headers=headers)).json()
            await client.post("/generate_stream", json=BODY, headers=headers)
        told = [record for record in caplog.records if record.name == "mera.content"]
        assert len(told) == (2 if on else 0)
        assert (SECRET in caplog.text) == on
    for record in told:
        assert json.dumps(answer["generated_text"]) in record.getMessage()
        assert record.getMessage().startswith('request_id="mine" prompt="Xylophone')
