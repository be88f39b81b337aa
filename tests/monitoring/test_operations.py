"""docs/operations.md knows every metric and every alert, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from mera_server.metrics import Metrics


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "operations.md").read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """The text under `## title`."""
    return page.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_every_metric_is_explained_with_its_labels(page: str) -> None:
    metrics = Metrics()
    labels = {
        family.name + ("_total" if family.type == "counter" else ""): set(collector._labelnames)
        for collector in set(metrics.registry._collector_to_names)
        if hasattr(collector, "_labelnames")
        for family in collector.collect()
    }
    rows = re.findall(r"^\| `(mera_\w+)` \| \w+ \| (.*?) \|", section(page, "Metrics"), re.MULTILINE)
    explained = {name: set(re.findall(r"`(\w+)`", found)) for name, found in rows}
    process = {family.name for family in metrics.registry.collect() if not family.name.startswith("mera_")}
    assert process
    assert all(f"`{name}" in section(page, "Metrics") for name in process)
    missing = {name: found for name, found in labels.items() if explained.get(name) != found}
    assert not missing


def test_every_alert_has_its_section_and_its_runbook_leads_there(page: str, alerts: dict[str, Any]) -> None:
    told = re.findall(r"^### (\w+)$", section(page, "Alerts"), re.MULTILINE)
    assert sorted(told) == sorted(alerts)
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")
        text = section(page, "Alerts").split(f"### {name}\n", 1)[1].split("\n### ", 1)[0]
        assert f"`{rule['labels']['severity']}`" in text.splitlines()[1], name
        assert "**Do:**" in text, name
