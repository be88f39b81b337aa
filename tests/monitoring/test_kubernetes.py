"""The example manifests: valid by Kubernetes' own schemas where a package has them, and by what the server needs in any case."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from merasteer.errors import MeraError

VERSIONS = ("1.28", "1.31", "1.34")
LABELS = {"app.kubernetes.io/name": "mera"}
Manifests = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "deploy" / "kubernetes"


@pytest.fixture(scope="module")
def manifests(folder: Path) -> Manifests:
    """Every resource that the kustomization names, as "Kind/name"."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert set(listed) == {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    found = [item for name in listed for item in yaml.safe_load_all((folder / name).read_text(encoding="utf-8"))]
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in found}


@pytest.fixture(scope="module")
def pod(manifests: Manifests) -> dict[str, Any]:
    found: dict[str, Any] = manifests["Deployment/mera"]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_own_schemas(manifests: Manifests, version: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate brings the schemas")
    checked = [item for item in manifests.values() if item["kind"] != "ServiceMonitor"]
    for item in checked:
        schemas.validate(item, version, strict=True)
    assert len(checked) == len(manifests) - 1
    broken = yaml.safe_load(yaml.safe_dump(manifests["Deployment/mera"]))
    broken["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(schemas.ValidationError):
        schemas.validate(broken, version, strict=True)


def test_the_service_monitor(manifests: Manifests) -> None:
    """Its schema is the operator's; here, that it holds no other fields than these and finds the service."""
    monitor, service = manifests["ServiceMonitor/mera"], manifests["Service/mera"]
    assert set(monitor) == {"apiVersion", "kind", "metadata", "spec"}
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    spec = monitor["spec"]
    assert set(spec) == {"jobLabel", "selector", "endpoints"}
    assert spec["selector"] == {"matchLabels": LABELS}
    assert service["metadata"]["labels"].items() >= LABELS.items()
    assert service["metadata"]["labels"][spec["jobLabel"]] == "mera"  # the job that the alert rules name
    (endpoint,) = spec["endpoints"]
    assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout"}
    assert (endpoint["port"], endpoint["path"]) == (service["spec"]["ports"][0]["name"], "/metrics")
    seconds = {name: int(re.fullmatch(r"(\d+)s", endpoint[name])[1]) for name in ("interval", "scrapeTimeout")}  # type: ignore[index]
    assert seconds["scrapeTimeout"] <= seconds["interval"]


def test_service_and_deployment_meet(manifests: Manifests, pod: dict[str, Any]) -> None:
    deployment, service = manifests["Deployment/mera"]["spec"], manifests["Service/mera"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels == service["selector"] == LABELS
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert service["ports"][0]["targetPort"] == port["name"]
    assert port["containerPort"] == 8000
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "emptyDir" not in volume}
    assert claims == {key.partition("/")[2] for key in manifests if key.startswith("PersistentVolumeClaim/")}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/store", "/models", "/tmp"}


def test_it_meets_the_restricted_pod_standard(root: Path, manifests: Manifests, pod: dict[str, Any]) -> None:
    assert manifests["Namespace/mera"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    user = pod["securityContext"]["runAsUser"]
    assert f"USER {user}:{pod['securityContext']['runAsGroup']}" in (root / "docker/Dockerfile").read_text(
        encoding="utf-8"
    )
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["fsGroup"] == user  # or the volumes could not be written to
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_probes_ask_routes_that_answer(server: str, pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    asked = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert all(httpx.get(server + path).status_code == 200 for path in asked.values())
    assert asked["livenessProbe"] == "/health/live"  # readiness there would restart a server for being busy loading
    assert asked["startupProbe"] == asked["readinessProbe"] == "/health/ready"
    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] >= 300
    assert pod["terminationGracePeriodSeconds"] > int(container["lifecycle"]["preStop"]["exec"]["command"][1]) + 30


def test_the_environment_is_one_the_server_takes(pod: dict[str, Any]) -> None:
    """A service named mera would set MERA_PORT to an address, unless service links are off."""
    from mera_server.settings import Settings

    given = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
    assert {name for name in given if name.startswith("MERA_")} <= {
        f"MERA_{name.upper()}" for name in Settings.model_fields
    }
    Settings.load(environ=given)
    with pytest.raises(MeraError):
        Settings.load(environ={**given, "MERA_PORT": "tcp://10.0.0.1:8000"})
    assert pod["enableServiceLinks"] is False


def test_the_command_that_makes_a_prometheus_rule(root: Path) -> None:
    """docs/operations.md: run as written, with cat in kubectl's place."""
    page = (root / "docs" / "operations.md").read_text(encoding="utf-8")
    (command,) = (block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "PrometheusRule" in block)
    assert "kubectl apply -n mera -f -" in command
    shell = command.replace("kubectl apply -n mera -f -", "cat")
    done = subprocess.run(
        ["bash", "-ec", shell], cwd=root, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    made = list(yaml.safe_load_all(done.stdout))
    files = [
        yaml.safe_load((root / f"monitoring/prometheus/{name}.yml").read_text()) for name in ("recording", "alerts")
    ]
    assert [item["spec"] for item in made] == files
    assert {(item["apiVersion"], item["kind"]) for item in made} == {("monitoring.coreos.com/v1", "PrometheusRule")}
    assert [item["metadata"]["name"] for item in made] == ["mera-recording", "mera-alerts"]
