"""promtool finds no fault in configuration and rules, and each alert is shown firing and not firing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml


def test_promtool_finds_no_fault(prometheus_files: Path, promtool: str) -> None:
    for what, names in (("config", ["prometheus.yml"]), ("rules", ["recording.yml", "alerts.yml"])):
        command = [promtool, "check", what, *(str(prometheus_files / name) for name in names)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["serving", "steering"])
def test_the_cases_come_out(prometheus_files: Path, promtool: str, name: str) -> None:
    done = subprocess.run(
        [promtool, "test", "rules", str(prometheus_files / "tests" / f"{name}.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def cases(files: Iterable[Path]) -> list[dict[str, Any]]:
    tests = [test for file in files for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]]
    return [case for test in tests for case in test["alert_rule_test"]]


def test_every_alert_has_a_case_of_either_kind(prometheus_files: Path, alerts: dict[str, dict[str, Any]]) -> None:
    found = cases((prometheus_files / "tests").glob("*.yml"))
    assert {case["alertname"] for case in found if case.get("exp_alerts")} == set(alerts)
    assert {case["alertname"] for case in found if not case.get("exp_alerts")} == set(alerts)


def test_every_rule_is_loaded(prometheus_files: Path) -> None:
    config = yaml.safe_load((prometheus_files / "prometheus.yml").read_text(encoding="utf-8"))
    assert set(config["rule_files"]) == {path.name for path in prometheus_files.glob("*.yml")} - {"prometheus.yml"}
