"""The compose file: valid, locked down, and wired to what lies in this repository."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

SERVERS = {"mera": "cpu", "mera-gpu": "gpu"}


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((root / "docker-compose.yml").read_text(encoding="utf-8"))
    return found


def test_it_is_valid(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(root / "docker-compose.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    misspelt = tmp_path / "docker-compose.yml"
    misspelt.write_text((root / "docker-compose.yml").read_text(encoding="utf-8").replace("read_only:", "readonly:"))
    assert subprocess.run([*command, str(misspelt)], capture_output=True).returncode == 1


def test_every_container_is_locked_down(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "pid", "network_mode", "ipc"} & set(service), name
        assert int(service["user"].partition(":")[0]) > 0, name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


def test_one_server_for_each_profile(root: Path, compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {name: service["profiles"] for name, service in services.items() if "profiles" in service} == {
        name: [profile] for name, profile in SERVERS.items()
    }
    default = dict(line.split("=") for line in (root / ".env").read_text().splitlines() if not line.startswith("#"))
    assert default["COMPOSE_PROFILES"] == "cpu"
    assert {"/cpu}", "/cu128}"} == {
        "/" + services[name]["build"]["args"]["TORCH_INDEX"].rsplit("/", 1)[1] for name in SERVERS
    }
    shared = set(services["mera"]) - {"profiles", "image", "build"}
    assert all(services["mera"][key] == services["mera-gpu"][key] for key in shared)


def test_the_image_is_what_the_compose_file_runs(root: Path, compose: dict[str, Any]) -> None:
    dockerfile = (root / "docker" / "Dockerfile").read_text(encoding="utf-8")
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for name in SERVERS:
        service = compose["services"][name]
        assert (root / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert set(service["build"]["args"]) == {"TORCH_INDEX"}
        assert f"USER {service['user']}" in dockerfile
        assert service["image"].split(":")[1].removesuffix("-cuda") == version
        written = {
            volume.rsplit("}", 1)[-1].split(":")[1] for volume in service["volumes"] if not volume.endswith(":ro")
        }
        assert written == {"/store", "/tmp"}
    assert "HEALTHCHECK" in dockerfile
    assert 'ENTRYPOINT ["mera"]' in dockerfile  # no shell in between: signals arrive


def test_what_is_mounted_is_there(root: Path, compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (root / source).is_dir(), f"{name}: {source}"
            elif not source.startswith("${"):
                assert source in compose["volumes"], f"{name}: {source}"


def test_prometheus_and_grafana_find_each_other(root: Path, compose: dict[str, Any], dashboard: dict[str, Any]) -> None:
    services = compose["services"]
    config = yaml.safe_load((root / "monitoring/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert (job["job_name"], job["static_configs"]) == ("mera", [{"targets": ["mera:8000"]}])
    assert services["mera-gpu"]["networks"]["default"]["aliases"] == ["mera"]
    provisioning = root / "monitoring/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/mera.yml").read_text(encoding="utf-8"))["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert mounts["./monitoring/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./monitoring/grafana/provisioning"] == "/etc/grafana/provisioning"
    (chosen,) = (item for item in dashboard["templating"]["list"] if item["type"] == "datasource")
    assert chosen["current"]["value"] == source["uid"]
    used = {json.dumps(panel["datasource"]) for panel in dashboard["panels"] if "datasource" in panel}
    assert used == {json.dumps({"type": "prometheus", "uid": "${" + chosen["name"] + "}"})}


def test_the_dashboard_is_laid_out(dashboard: dict[str, Any]) -> None:
    """Ids are unique, nothing overlaps, and every panel but rows and text says what it shows."""
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] in ("row", "text") or panel["description"], panel["title"]
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == ["Is it well?", "Is it steering?", "Is it helping?"]
