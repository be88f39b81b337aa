"""No log line of ours holds what a caller sent or what the model said, at the finest level, whatever went wrong."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import httpx
import pytest
from mera_server.app import create_app
from mera_server.settings import Settings

SECRET = "Xylophone-Quokka"
GOOD = {"inputs": f"{SECRET} says hello", "parameters": {"max_new_tokens": 4}}
STEERED = {"inputs": {"desk": "B", "text": f"Win {SECRET}"}, "steering": {"task": "demo_spam"}, "details": "trace"}
SENT: list[tuple[str, str, object]] = [
    ("POST", "/generate", GOOD),
    ("POST", "/generate", STEERED),
    ("POST", "/generate", {**GOOD, "steering": {"task": SECRET}}),
    ("POST", "/generate", {**GOOD, "steering": {"task": "demo_spam", "probe": SECRET}}),
    ("POST", "/generate", {**GOOD, SECRET: 1}),
    ("POST", "/generate", {**GOOD, "parameters": {"temperature": SECRET}}),
    ("POST", "/generate", f'{{"inputs": "{SECRET}'),
    ("POST", "/generate", {"inputs": f"{SECRET} " * 3000}),
    ("GET", f"/{SECRET}?{SECRET}={SECRET}", None),
    ("GET", f"/probes/{SECRET}", None),
]


async def test_no_log_holds_what_was_sent_or_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(Settings(store=tmp_path, log_level="debug"))
    with caplog.at_level(logging.DEBUG):
        for name in ("mera", "merasteer"):
            caplog.set_level(logging.DEBUG, name)
        app.state.runtime.start()
        answers = []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            try:
                deadline = time.monotonic() + 60
                while (await client.get("/health/ready")).status_code != 200:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                for method, path, body in SENT:
                    given = {"content": body} if isinstance(body, str) else {"json": body}
                    headers = {"Authorization": f"Bearer {SECRET}", "User-Agent": SECRET}
                    answers.append(await client.request(method, path, headers=headers, **given))  # type: ignore[arg-type]
            finally:
                app.state.runtime.serving().engine.stop()
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    assert {answer.status_code for answer in answers[2:]} <= {400, 401, 403, 404, 413, 422}
    ours = [record for record in caplog.records if record.name.split(".")[0] in ("mera", "merasteer")]
    assert len(ours) >= len(SENT)  # the access log is there
    said = answers[0].json()["generated_text"].strip()
    for record in ours:
        line = record.getMessage() + (record.exc_text or "")
        assert SECRET.lower() not in line.lower()
        assert len(said) < 4 or said not in line
