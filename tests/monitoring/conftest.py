"""The real server on a port, under load, and a real Prometheus that scrapes it with the rules of this repository."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from mera_server.app import create_app
from mera_server.settings import Settings

from merasteer import demo

Query = Callable[[str], list[dict[str, Any]]]
FIELDS = {"desk": "B", "text": "Claim your reward before Thursday. Win a holiday for two."}
PLAIN = {"desk": "A", "text": "Lunch at noon tomorrow? Did you find the keys?"}
TOKENS = {"parameters": {"max_new_tokens": 3}}
LOAD = [
    {"inputs": FIELDS, "steering": {"task": "demo_spam"}, **TOKENS},
    {
        "inputs": PLAIN,
        "steering": {"task": "demo_spam", "alpha": 0.99},
        "parameters": {"max_new_tokens": 1},
    },  # not needed
    {"inputs": PLAIN, "steering": {"task": "demo_spam", "method": "none"}, **TOKENS},
    {"inputs": {"text": "hello"}, "steering": {"task": "demo_desk_a"}, **TOKENS},
    {"inputs": {"text": "hello"}, "steering": {"task": "sms_spam"}, **TOKENS},
    {"inputs": "Desk A.", **TOKENS},
    {"inputs": "x", "steering": {"task": "nope"}},
]


@pytest.fixture(scope="session")
def prometheus_files(root: Path) -> Path:
    return root / "monitoring" / "prometheus"


@pytest.fixture(scope="session")
def groups(prometheus_files: Path) -> list[dict[str, Any]]:
    """The rule groups of both files, in order."""
    files = ("recording.yml", "alerts.yml")
    found = [yaml.safe_load((prometheus_files / name).read_text(encoding="utf-8"))["groups"] for name in files]
    return [group for groups in found for group in groups]


@pytest.fixture(scope="session")
def alerts(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


@pytest.fixture(scope="session")
def dashboard(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "monitoring/grafana/dashboards/mera.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="session")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool; install Prometheus (Debian: apt-get install prometheus)")
    return found


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Address of the app over the built-in model, ready."""
    if not (demo.model_dir() / "config.json").is_file():
        pytest.skip("the built-in demo is not built; run `mera demo build`")
    app = uvicorn.Server(uvicorn.Config(create_app(Settings()), port=0, log_level="error"))
    thread = threading.Thread(target=app.run, daemon=True)
    thread.start()
    until(lambda: app.started)
    address = f"http://127.0.0.1:{app.servers[0].sockets[0].getsockname()[1]}"
    until(lambda: httpx.get(f"{address}/health/ready").status_code == 200)
    yield address
    app.should_exit = True
    thread.join(30)


@pytest.fixture(scope="session")
def query(
    server: str,
    prometheus_files: Path,
    groups: list[dict[str, Any]],
    promtool: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Query]:
    """Instant queries to a Prometheus that has scraped the server under load, every second, and remembers yesterday."""
    folder = tmp_path_factory.mktemp("prometheus")
    with _loaded(server):
        until(lambda: httpx.get(f"{server}/metrics").text.count("mera_decisions_total{") >= len(LOAD) - 2)
        _yesterday(httpx.get(f"{server}/metrics").text, server, folder, promtool)
        for group in groups:
            group = {name: value for name, value in group.items() if name != "interval"}  # all every second
            (folder / f"{group['name']}.yml").write_text(yaml.safe_dump({"groups": [group]}), encoding="utf-8")
        config = yaml.safe_load((prometheus_files / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [f"{group['name']}.yml" for group in groups]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [server.removeprefix("http://")]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        with _prometheus(folder) as address:

            def ask(expression: str) -> list[dict[str, Any]]:
                answer = httpx.get(f"{address}/api/v1/query", params={"query": expression}).json()
                assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
                found: list[dict[str, Any]] = answer["data"]["result"]
                return found

            until(lambda: bool(ask("count_over_time(mera_model_info[1h]) >= 6")))
            yield ask


@contextmanager
def _prometheus(folder: Path) -> Iterator[str]:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus binary (Debian: apt-get install prometheus)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    command = [binary, *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, cwd=folder)
        try:
            until(lambda: _answers(f"{address}/-/ready"))
            yield address
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def _loaded(server: str) -> Iterator[None]:
    """Requests of every kind, one after the other, for as long as the block lasts."""
    done = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=server) as client:
            while not done.is_set():
                for body in LOAD:
                    client.post("/generate", json=body)
                done.wait(0.1)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(30)


def _yesterday(exposition: str, server: str, folder: Path, promtool: str) -> None:
    """Writes a history of every series that the server shows, hours ago, for the rules that compare with what was usual."""
    now = int(time.time())
    instance = server.removeprefix("http://")
    lines = []
    for line in exposition.splitlines():
        if not line.startswith("#"):
            series, value = line.rsplit(" ", 1)
            name, _, labels = series.rstrip("}").partition("{")
            labels = ",".join(filter(None, (labels, f'job="mera",instance="{instance}"')))
            times = range(now - 3 * 3600, now - 2 * 3600, 300)
            lines += [f"{name}{{{labels}}} {float(value) * step} {moment}" for step, moment in enumerate(times)]
    history = folder / "history.txt"
    history.write_text("\n".join([*lines, "# EOF", ""]), encoding="utf-8")
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(history), str(folder / "data")]
    subprocess.run(command, check=True, capture_output=True)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Waits. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)
