"""Keys switched on: what compose, Prometheus and the manifests hold behind "#: " for that is valid once it is taken away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mera_server.settings import Settings


def switched_on(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    assert "#: " in text
    return text.replace("#: ", "")


def test_the_compose_file(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "docker-compose.yml"
    file.write_text(switched_on(root / "docker-compose.yml"), encoding="utf-8")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    services = yaml.safe_load(file.read_text(encoding="utf-8"))["services"]
    for name in ("mera", "mera-gpu"):
        given = services[name]["environment"]
        Settings.load(environ={**given, "MERA_MODEL": "", "MERA_DEFAULT_TASK": ""})
        folder = given["MERA_KEYS_FILE"].rpartition("/")[0]
        assert any(volume.endswith(f":{folder}:ro") for volume in services[name]["volumes"])
    config = yaml.safe_load(switched_on(root / "monitoring/prometheus/prometheus.yml"))
    key = config["scrape_configs"][0]["authorization"]["credentials_file"]
    assert any(volume.endswith(f":{key}:ro") for volume in services["prometheus"]["volumes"])


def test_prometheus(root: Path, tmp_path: Path) -> None:
    config = tmp_path / "prometheus.yml"
    (tmp_path / "key").write_text("mera_x", encoding="utf-8")
    text = switched_on(root / "monitoring/prometheus/prometheus.yml")
    config.write_text(text.replace("/etc/mera-read.key", str(tmp_path / "key")), encoding="utf-8")
    try:
        command = ["promtool", "check", "config", "--syntax-only", str(config)]
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no promtool; install Prometheus (Debian: apt-get install prometheus)")
    assert done.returncode == 0, done.stdout + done.stderr
    config.write_text(config.read_text(encoding="utf-8").replace("credentials_file", "credential_file"))
    assert subprocess.run(command, capture_output=True).returncode == 1


def test_the_manifests(root: Path) -> None:
    folder = root / "deploy" / "kubernetes"
    deployment: Any = yaml.safe_load(switched_on(folder / "deployment.yaml"))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = {item["name"]: item["value"] for item in container["env"]}
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "keys")
    assert (given["MERA_KEYS_FILE"], mount["mountPath"]) == ("/keys/keys.json", "/keys")
    assert {"name": "keys", "secret": {"secretName": "mera-keys"}} in pod["volumes"]
    (endpoint,) = yaml.safe_load(switched_on(folder / "servicemonitor.yaml"))["spec"]["endpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": "mera-read-key", "key": "key"}}  # a SafeAuthorization
    schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate brings the schemas")
    schemas.validate(deployment, "1.31", strict=True)
