"""What one caller can take of the server: sizes, time, rate, connections; and who may reach it at all."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.cli import main
from mera_server.loading import Serving
from mera_server.process import PatientProtocol
from mera_server.settings import Settings

Ready = Callable[[FastAPI], FastAPI]
Listening = Callable[[FastAPI], AbstractContextManager[tuple[str, int]]]
Serve = Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]
Limited = Callable[..., httpx.AsyncClient]
ONE = {"inputs": "Message:", "parameters": {"max_new_tokens": 1}}
STREAM = {"inputs": "Message:", "parameters": {"max_new_tokens": 900}, "stream": True}


@pytest.fixture
def limited(settings: Settings, serving: Serving, ready_app: Ready) -> Limited:
    """A client of an app with these settings."""

    def make(**given: Any) -> httpx.AsyncClient:
        app = ready_app(create_app(settings.model_copy(update=given), loader=lambda _: serving))
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    return make


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# --- sizes -------------------------------------------------------------------------------------------------------------------------


async def test_a_prompt_above_the_limit_is_refused_on_every_route(limited: Limited, serving: Serving) -> None:
    fits, long = "word " * 20, "word " * 40
    limit = len(serving.engine.encode(fits))
    few = {"max_new_tokens": 1}
    model = serving.engine.loaded.id
    async with limited(max_prompt_tokens=limit) as client:
        assert (await client.post("/generate", json={"inputs": fits, "parameters": few})).status_code == 200
        bodies: list[tuple[str, Any, str]] = [
            ("/generate", {"inputs": long, "parameters": few}, "inputs:"),
            ("/generate_stream", {"inputs": long, "parameters": few}, "inputs:"),
            ("/classify", {"task": "demo_desk_a", "inputs": ["x", long]}, "inputs[1]"),
            ("/v1/completions", {"model": model, "prompt": ["x", long], "max_tokens": 1}, "prompt[1]"),
            ("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": long}]}, "messages"),
        ]
        for path, body, field in bodies:
            response = await client.post(path, json=body)
            refused = (400, "context_length_exceeded") if path.startswith("/v1") else (422, "prompt_too_long")
            assert error_of(response) == refused, (path, response.text)
            assert response.json()["error"]["message"].startswith(field)
            assert str(limit) in response.json()["error"]["message"]


# --- rate --------------------------------------------------------------------------------------------------------------------------


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(
    limited: Limited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, headers = tmp_path / "keys.json", {}
    for name in "ab":
        assert main(["keys", "add", name, "--keys-file", str(path)]) == 0
        headers[name] = {"Authorization": f"Bearer {capsys.readouterr().out.strip()}"}
    async with limited(keys_file=path, rate_limit=0.01, rate_burst=2) as client:
        statuses = [(await client.post("/generate", json=ONE, headers=headers["a"])).status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        refused = await client.post("/generate", json=ONE, headers=headers["a"])
        assert error_of(refused) == (429, "rate_limited")
        assert 95 <= int(refused.headers["retry-after"]) <= 100
        assert (await client.post("/generate", json=ONE, headers=headers["b"])).status_code == 200
        assert (await client.get("/tasks", headers=headers["a"])).status_code == 200


async def test_a_batch_pays_for_each_of_its_inputs(limited: Limited) -> None:
    async with limited(rate_limit=0.01, rate_burst=2) as client:
        many = {"task": "demo_desk_a", "inputs": ["x"] * 20}
        assert (await client.post("/classify", json=many)).status_code == 200
        refused = await client.post("/generate", json=ONE)
        assert error_of(refused) == (429, "rate_limited")
        assert 1895 <= int(refused.headers["retry-after"]) <= 1900  # 18 in debt and one to come


# --- time --------------------------------------------------------------------------------------------------------------------------


async def until_idle(serving: Serving) -> None:
    for _ in range(500):
        if serving.engine.stats().running == serving.engine.stats().waiting == 0:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("still running")


async def test_a_request_that_takes_too_long_is_503_and_frees_what_it_held(limited: Limited, serving: Serving) -> None:
    async with limited(request_timeout=0.2) as client:
        with serving.engine.held():
            start = time.monotonic()
            responses = await asyncio.gather(*(client.post("/generate", json=ONE) for _ in range(3)))
            assert time.monotonic() - start < 2
            for response in responses:
                assert error_of(response) == (503, "deadline_exceeded")
                assert "0.2 s" in response.json()["error"]["message"]
        await until_idle(serving)
        text = (await client.get("/metrics")).text
        assert 'mera_requests_total{route="/generate",status="503"} 3.0' in text
        assert (await client.post("/generate", json=ONE)).status_code == 200


async def test_a_stream_that_takes_too_long_ends_with_the_error(
    limited: Limited, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = serving.engine.on_step
    monkeypatch.setattr(serving.engine, "on_step", lambda found: (time.sleep(0.03), step(found)))
    async with limited(request_timeout=0.5) as client:
        response = await client.post("/generate", json=STREAM)
        assert response.status_code == 200
        events = [json.loads(line[5:]) for line in response.text.splitlines() if line]
        assert [event["index"] for event in events[:-1]] == list(range(1, len(events)))
        assert events[-1]["error"]["code"] == "deadline_exceeded"
        await until_idle(serving)
        assert 'mera_requests_total{route="/generate",status="503"} 1.0' in (await client.get("/metrics")).text


async def test_a_body_that_never_comes_is_given_up(limited: Limited) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    async with limited(request_timeout=0.2) as client:
        assert error_of(await client.post("/generate", content=trickle())) == (503, "deadline_exceeded")


# --- connections -------------------------------------------------------------------------------------------------------------------


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes it within seconds; what it sends meanwhile is passed over."""
    connection.settimeout(5)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def status_of(connection: socket.socket) -> int:
    """The status of one answer, all of which is taken."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


def test_half_open_connections_are_closed_and_disturb_nobody(
    listening: Listening, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mera_server.process._HEAD_SECONDS", 0.5)
    with listening(app) as address:
        half = [socket.create_connection(address) for _ in range(200)]
        for number, connection in enumerate(half):
            connection.sendall([b"", b"POST /generate HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "][number % 3])
        for _ in range(5):
            answer = httpx.post(f"http://{address[0]}:{address[1]}/generate", json=ONE)
            assert answer.status_code == 200
        assert all(is_closed(connection) for connection in half)
        for connection in half:
            connection.close()


def test_a_slow_body_and_the_next_request_are_no_half_open_connections(
    listening: Listening, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mera_server.process._HEAD_SECONDS", 0.3)
    raw = json.dumps(ONE).encode()
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw)
    with listening(app) as address, socket.create_connection(address) as connection:
        connection.settimeout(10)
        for _ in range(2):
            connection.sendall(head)
            time.sleep(0.6)
            connection.sendall(raw)
            assert status_of(connection) == 200
        connection.sendall(head[:20])  # the third never becomes whole
        start = time.monotonic()
        assert is_closed(connection)
        assert time.monotonic() - start < 3
    assert issubclass(PatientProtocol, uvicorn.protocols.http.h11_impl.H11Protocol)


# --- who reaches it ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "loud"),
    [
        (["--host", "127.0.0.1"], False),
        (["--host", "0.0.0.0"], True),
        (["--host", "0.0.0.0", "--log-level", "error"], True),
        (["--host", "0.0.0.0", "--open"], False),
        (["--host", "0.0.0.0", "--keys-file"], False),
    ],
)
def test_a_server_that_is_open_to_others_says_so_loudly(
    arguments: list[str],
    loud: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if arguments[-1] == "--keys-file":
        arguments = [*arguments, str(tmp_path / "keys.json")]
        assert main(["keys", "add", "a", *arguments[-2:]]) == 0
    monkeypatch.setattr("mera_server.process.Server.run", lambda *_, **__: None)
    monkeypatch.setattr(
        "mera_server.commands.serve.set_up", lambda *_, **__: None
    )  # it would take the test's own handler away
    assert main(["serve", "--port", "0", *arguments]) == 0
    told = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert len(told) == loud
    assert all("no key is asked for" in record.getMessage() for record in told)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=mera"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return cert, key


def test_tls(mera_serve: Serve, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    options = ("--port", "0", "--store", str(tmp_path), "--tls-cert", str(cert), "--tls-key", str(key))
    with mera_serve(*options) as (_, address):
        assert address.startswith("https://")
        trust = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(f"{address}/health/live", verify=trust).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health/live")  # nobody else vouches for it
        with pytest.raises(httpx.TransportError):
            httpx.get(address.replace("https", "http") + "/health/live")


def test_the_health_check_of_the_image_follows_the_certificate(
    mera_serve: Serve, certificate: tuple[Path, Path], tmp_path: Path, root: Path
) -> None:
    (line,) = re.findall(
        r"HEALTHCHECK .*\n +CMD (\[.*\])", (root / "docker" / "Dockerfile").read_text(encoding="utf-8")
    )
    _, *check = json.loads(line)

    def healthy(address: str, **environ: str) -> bool:
        given = {"MERA_PORT": address.rpartition(":")[2], "https_proxy": "http://127.0.0.1:9", **environ}
        return subprocess.run([sys.executable, *check], env=given, capture_output=True).returncode == 0

    tls = {"MERA_TLS_CERT": str(certificate[0]), "MERA_TLS_KEY": str(certificate[1])}
    for environ in (tls, {"MERA_TLS_CERT": ""}):
        with mera_serve("--port", "0", "--store", str(tmp_path), **environ) as (_, address):
            assert healthy(address, **environ)
        assert not healthy(address, **environ)


def test_a_certificate_that_cannot_be_used_is_one_line(
    certificate: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mera_server.commands.serve.set_up", lambda *_, **__: None)
    cert, key = (str(path) for path in certificate)
    (tmp_path / "no.pem").write_text("nothing", encoding="utf-8")
    for wrong in ((cert, cert), (str(tmp_path / "no.pem"), key), (cert, str(tmp_path / "absent.pem"))):
        assert main(["serve", "--port", "0", "--tls-cert", wrong[0], "--tls-key", wrong[1]]) == 2
        told = capsys.readouterr().err.splitlines()
        assert len([line for line in told if line.startswith("mera: tls-cert")]) == 1
