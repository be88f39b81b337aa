"""What dashboard and rules ask of Prometheus is there: each expression is run against the real server under load."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

Query = Callable[[str], list[dict[str, Any]]]
VARIABLES = {"$job": "mera", "$task": ".*", "$__rate_interval": "1m"}
# What rules and dashboard read and nothing exports yet. Where there is a sample, expressions must return data.
AWAITED: set[str] = set()
OURS = re.compile(r"(?<![\w:])(?:mera_\w+|(?:job|task):mera_[\w:]+|up)(?:\{[^}]*\})?(?![\w:(])")


def panels(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(title, expression) of each query, its variables filled in."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, f"{panel['title']}: a variable that this test does not know: {expression}"
            yield panel["title"], expression


def names(expression: str) -> set[str]:
    """The series of ours that it reads."""
    return {found.partition("{")[0] for found in OURS.findall(expression)}


@pytest.fixture(scope="module")
def awaited(server: str) -> set[str]:
    shown = set(re.findall(r"^(mera_\w+)", httpx.get(f"{server}/metrics").text, re.MULTILINE))
    return {name for name in AWAITED if name not in shown}


def test_every_dashboard_expression_returns_data(query: Query, awaited: set[str], dashboard: dict[str, Any]) -> None:
    asked = list(panels(dashboard))
    empty = [
        (title, expression) for title, expression in asked if not names(expression) & awaited and not query(expression)
    ]
    assert len(asked) > 25
    assert not empty


def test_every_recording_rule_returns_data(query: Query, groups: list[dict[str, Any]]) -> None:
    rules = [rule for group in groups for rule in group["rules"] if "record" in rule]
    empty = [rule["record"] for rule in rules if not query(rule["record"]) or not query(rule["expr"])]
    assert len(rules) > 10
    assert not empty


def test_every_alert_reads_series_that_exist(query: Query, awaited: set[str], alerts: dict[str, Any]) -> None:
    """An alert's own expression is empty while all is well; what it compares is not."""
    for name, rule in alerts.items():
        query(rule["expr"])  # no error
        read = OURS.findall(rule["expr"])
        assert read, name
        assert not [selector for selector in read if not names(selector) & awaited and not query(selector)], name


def test_no_alert_is_even_pending_on_a_server_that_is_well(query: Query) -> None:
    """Steady load, and yesterday like today. How fast it is, is the machine's affair."""
    assert query('ALERTS{alertname!~"MeraSlow.*|MeraQueue"}') == []


def test_figures_agree_with_the_server(query: Query, server: str) -> None:
    assert query("up")[0]["value"][1] == "1"
    total = query('sum(mera_decisions_total{task="sms_spam", decision="abstained", reason="no_probe"})')
    assert float(total[0]["value"][1]) > 0
    assert query('task:mera_abstained:ratio30m{task="demo_desk_a"}')[0]["value"][1] == "1"
    assert query('task:mera_abstained:ratio30m{task="demo_spam"}')[0]["value"][1] == "0"
    steered = float(query('task:mera_steered:ratio30m{task="demo_spam"}')[0]["value"][1])
    assert 0.3 < steered < 0.7  # one of the two requests that steering is open to


def test_no_name_is_awaited_for_nothing(dashboard: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    assert set().union(*(names(expression) for expression in rules + [e for _, e in panels(dashboard)])) >= AWAITED
