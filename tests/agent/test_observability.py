"""Dashboard, alerts and their documentation speak of metrics, labels and values that exist.

``make tables`` writes the table in docs/agent.md and
deploy/prometheus-rule.yaml anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import promql_parser as promql
import pytest
import yaml
from looks import WEB, change, feed, look
from paths import ROOT
from prometheus_client.core import Metric

from gitops_mcp.agent.metrics import Gauges, Metrics

DEPLOY = ROOT / "deploy"
PAGE = ROOT / "docs" / "agent.md"
TABLE = re.compile(r"(<!-- metrics: [^>]*-->\n)(.*?)(<!-- /metrics -->)", re.S)

TARGET = {"job", "instance", "namespace", "pod"}
"""Labels that Prometheus adds to whatever it scrapes."""
OPEN = {"action", "cluster", "code", "kind", "python", "revision", "source", "verb", "version"}
"""Labels of which not every value is known here."""


@cache
def families() -> list[Metric]:
    """Everything that an agent counts, of which each has happened once."""
    counted = Metrics()
    counted.read(Gauges(leads=lambda: {"default": True}))
    counted.adopted("c1")
    counted.enforces("default", "default")
    counted.requested("get", "Pod", 200)
    feed(counted.worked)(look("changed", change()))
    return list(counted.registry.collect())


@cache
def samples() -> dict[str, dict[str, set[str]]]:
    """Every sample that an agent can show: its labels, and their values as far as we know."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in families():
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEPLOY / "dashboard.json").read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression, by where it stands; Grafana's variables filled in."""
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


def visited(expression: str) -> list[Any]:
    """The nodes of an expression."""
    nodes: list[Any] = []
    promql.walk(promql.parse(expression), lambda node: nodes.append(node))
    return nodes


def selectors(expression: str) -> list[Any]:
    found = []
    for node in visited(expression):
        if isinstance(node, promql.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql.VectorSelector):
            found.append(node)
    return found


def mistakes(expression: str) -> list[str]:
    """What an expression says that no agent can show."""
    wrong, known = [], set(TARGET)
    for selector in selectors(expression):
        if selector.name not in samples():
            wrong.append(f"no metric {selector.name}")
            continue
        labels = samples()[selector.name]
        known |= labels.keys()
        for matcher in selector.matchers.matchers:
            if matcher.name not in labels.keys() | TARGET:
                wrong.append(f"{selector.name} has no label {matcher.name}")
            elif matcher.name not in OPEN | TARGET:
                strange = set(matcher.value.split("|")) - labels[matcher.name]
                wrong += [f"{matcher.name} is never {value}" for value in strange]
    for node in visited(expression):
        modifier = getattr(node, "modifier", None)
        grouped = getattr(modifier, "labels", None) or []
        wrong += [f"nothing is labelled {name}" for name in grouped if name not in known]
    return wrong


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_every_metric_label_and_value_exists(place: str, expression: str) -> None:
    assert selectors(expression), place
    assert mistakes(expression) == [], place


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("gitops_mcp_gone > 0", "no metric gitops_mcp_gone"),
        ('gitops_mcp_servers{state="Failed"}', "gitops_mcp_servers has no label state"),
        ('gitops_mcp_servers{phase=~"Failed|Lost"}', "phase is never Lost"),
        ("sum by (server) (rate(gitops_mcp_changes_total[5m]))", "nothing is labelled server"),
    ],
)
def test_a_mistake_would_be_found(expression: str, wrong: str) -> None:
    assert mistakes(expression) == [wrong]


# --- alerts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_it_means_and_where_to_read_on(rule: dict[str, Any]) -> None:
    notes = rule["annotations"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert len(notes["summary"]) < 80
    assert notes["description"].endswith(".")
    page, _, anchor = notes["runbook"].partition("#")
    headings = re.findall(r"^### (.*)$", (ROOT / page).read_text(), re.M)
    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_names_only_labels_that_its_expression_leaves(rule: dict[str, Any]) -> None:
    """An empty word in a page at night helps nobody."""
    wanted = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    left: set[str] = set()
    for selector in selectors(rule["expr"]):
        left |= samples()[selector.name].keys() | TARGET
    for node in visited(rule["expr"]):
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql.AggregateExpr) and modifier is not None:
            by = modifier.type == promql.AggModifierType.By
            left = left & set(modifier.labels) if by else left - set(modifier.labels)
    assert wanted <= left


def test_every_runbook_belongs_to_an_alert() -> None:
    headings = re.findall(r"^### (GitOpsMcp\w+)$", PAGE.read_text(), re.M)
    assert headings == [rule["alert"] for rule in alerts()]


def prometheus_rule() -> str:
    """The alerts for the Prometheus operator."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "gitops-mcp",
            "namespace": "gitops-mcp",
            "labels": {"app.kubernetes.io/name": "gitops-mcp"},
        },
        "spec": yaml.safe_load((DEPLOY / "alerts.yaml").read_text()),
    }
    head = "# alerts.yaml, for the Prometheus operator; written by make tables\n"
    return head + yaml.safe_dump(rule, sort_keys=False, width=1000, allow_unicode=True)


def test_the_operator_gets_the_same_alerts() -> None:
    written = (DEPLOY / "prometheus-rule.yaml").read_text()
    assert written == prometheus_rule(), "run make tables"


# --- dashboard --------------------------------------------------------------------------------


def test_the_panels_have_room_and_numbers_of_their_own() -> None:
    every = dashboard()["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


CHOSEN = (
    " and on (job, instance) "
    'gitops_mcp_source_info{job=~"$job", cluster=~"$cluster", source=~"$source"}'
)
"""Keeps the agents of the chosen clusters and sources: the only metric that names both."""


def test_every_panel_asks_the_chosen_prometheus_for_the_chosen_agents() -> None:
    variables = {each["name"] for each in dashboard()["templating"]["list"]}
    assert variables == {"datasource", "job", "cluster", "source"}
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            for selector in selectors(target["expr"].replace("$__rate_interval", "5m")):
                assert 'job=~"$job"' in str(selector), target["expr"]
            kept = re.findall(rf"[)}}]{re.escape(CHOSEN)}", target["expr"])
            assert len(kept) * 2 == len(re.findall(r"\w\{", target["expr"])), target["expr"]


def test_a_metric_that_nobody_looks_at_is_none() -> None:
    shown = {
        re.sub(r"_(bucket|count|sum)$", "", selector.name)
        for _, expression in expressions()
        for selector in selectors(expression)
    }
    ours = {re.sub(r"_(bucket|count|sum)$", "", name) for name in samples()}
    assert {name for name in ours if name.startswith("gitops_mcp_")} <= shown


# --- the table --------------------------------------------------------------------------------


def metric_table() -> str:
    """Every metric of ours, as the registry has it."""
    rows = ["| metric | type | labels | |", "|---|---|---|---|"]
    for family in sorted(families(), key=lambda family: family.name):
        if not family.name.startswith("gitops_mcp_"):
            continue
        kind = "gauge" if family.type == "info" else family.type
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        named = ", ".join(f"`{label}`" for label in sorted(labels))
        rows.append(f"| `{name}` | {kind} | {named} | {family.documentation} |")
    return "\n".join(rows) + "\n"


def test_the_table_of_metrics_is_the_registrys() -> None:
    found = TABLE.search(PAGE.read_text())
    assert found is not None
    assert found[2] == metric_table(), "run make tables"


def test_metrics_named_in_the_page_exist() -> None:
    named = set(re.findall(r"gitops_mcp_\w+", PAGE.read_text()))
    every = set(samples()) | {re.sub(r"_(bucket|count|sum)$", "", name) for name in samples()}
    assert named <= every


def test_the_server_that_is_looked_at_here_is_named_nowhere() -> None:
    assert not any(
        WEB.name in value or WEB.namespace == value
        for labels in samples().values()
        for values in labels.values()
        for value in values
    )


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        TABLE.sub(lambda found: found[1] + metric_table() + found[3], text), encoding="utf-8"
    )
    (DEPLOY / "prometheus-rule.yaml").write_text(prometheus_rule(), encoding="utf-8")
