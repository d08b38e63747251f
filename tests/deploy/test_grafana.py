"""The dashboard: every query is parsed, and asks for metrics and labels that are really registered.

That Ray exports exactly ``scrape.SERIES``, names and labels, is what ``tests/pipeline/test_metrics.py`` finds at a real
node, which also has every value that a query names.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser as promql
import pytest
import yaml

from tests.deploy.rendered import ROOT
from tests.pipeline.scrape import SERIES
from workers.metrics import METRICS

BOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "foveate.json").read_text())
TARGET_LABELS = frozenset({"instance", "job", "namespace", "pod", "container", "endpoint"})
"""Labels that Prometheus and its operator add when they scrape."""
BUILT_IN = {"__rate_interval": "1m", "__range": "1h", "session": ".*"}
GAUGES = {f"ray_{metric.name}" for metric in METRICS if metric.kind == "gauge"}
OF_COUNTERS = {"rate", "irate", "increase"}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """All panels but the headings of rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def faults(board: dict[str, Any]) -> list[str]:
    """What is wrong with the queries of a dashboard, as ``panel: words``."""
    return [
        f"{panel['title']}: {fault}"
        for panel in panels(board)
        for target in panel["targets"]
        for fault in query_faults(target["expr"], target["legendFormat"])
    ]


def nodes_of(query: str) -> list[promql.Expr]:
    """Everything in a query. ``ValueError`` where it does not parse."""
    nodes: list[promql.Expr] = []
    text = re.sub(r"\$(\w+)", lambda match: BUILT_IN.get(match[1], match[0]), query)
    promql.walk(promql.parse(text), pre_visit=nodes.append)
    return nodes


def values_named(board: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Values that queries ask for by name, as (series, label, value)."""
    queries = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    selectors = [node for query in queries for node in nodes_of(query) if isinstance(node, promql.VectorSelector)]
    return {
        (selector.name, matcher.name, matcher.value)
        for selector in selectors
        for matcher in selector.matchers.matchers
        if matcher.op == promql.MatchOp.Equal
    }


def query_faults(query: str, legend: str = "") -> Iterator[str]:
    """What is wrong with one query: it does not parse, or asks for what there is not."""
    try:
        nodes = nodes_of(query)
    except ValueError as error:
        yield f"{error}"
        return
    known: set[str] = set()
    for selector in [node for node in nodes if isinstance(node, promql.VectorSelector)]:
        labels = SERIES.get(selector.name)
        if labels is None:
            yield f"no metric {selector.name}"
            continue
        known |= labels | TARGET_LABELS
        asked = {matcher.name for matcher in selector.matchers.matchers}
        yield from (f"{selector.name} has no label {label}" for label in sorted(asked - labels - TARGET_LABELS))
        if "SessionName" not in asked:
            yield f"{selector.name} is not limited to $session"
    grouped = {label for node in nodes if isinstance(node, promql.AggregateExpr) for label in by(node)}
    yield from (f"nothing has label {label}" for label in sorted(grouped - known))
    shown = set(re.findall(r"{{(\w+)}}", legend))
    yield from (f"the legend's {label} is not grouped by" for label in sorted(shown - grouped))
    for call in [node for node in nodes if isinstance(node, promql.Call)]:
        yield from call_faults(call)


def by(node: promql.AggregateExpr) -> list[str]:
    return list(node.modifier.labels) if node.modifier else []


def call_faults(call: promql.Call) -> Iterator[str]:
    """Rates are of counters, quantiles of buckets by ``le``; sums of histograms are not exact in Ray, so of no use."""
    inner = [argument.vector_selector.name for argument in call.args if isinstance(argument, promql.MatrixSelector)]
    for name in inner if call.func.name != "max_over_time" else ():
        if (name in GAUGES) == (call.func.name in OF_COUNTERS) or name.endswith("_sum"):
            yield f"{call.func.name} of {name}"
    if call.func.name == "histogram_quantile":
        aggregate = call.args[1]
        if not isinstance(aggregate, promql.AggregateExpr) or "le" not in by(aggregate):
            yield "histogram_quantile of what is not grouped by le"


def test_every_query_asks_for_what_is_registered() -> None:
    assert not faults(BOARD)
    asked = {
        name for panel in panels(BOARD) for target in panel["targets"] for name in SERIES if name in target["expr"]
    }
    of = {metric.name for metric in METRICS if any(name.startswith(f"ray_{metric.name}") for name in asked)}
    assert {metric.name for metric in METRICS} - of == {"foveate_commits_total"}, "a metric that nobody looks at"


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("ray_foveate_tokens_total", "ray_foveate_token_total", "no metric ray_foveate_token_total"),
        ("ray_foveate_tokens_total", "foveate_tokens_total", "no metric foveate_tokens_total"),
        ('outcome="failed"', 'status="failed"', "has no label status"),
        ("sum by (phase)", "sum by (stage)", "nothing has label stage"),
        ("{{cause}}", "{{reason}}", "the legend's reason is not grouped by"),
        ("sum by (le) (rate(", "sum (rate(", "not grouped by le"),
        ("deriv(", "rate(", "rate of ray_foveate_run_tokens"),
        ('{SessionName=~"$session"}', "", "is not limited to $session"),
        ("[10m]) > 0)", "[10m]) > 0", ""),
    ],
)
def test_a_planted_fault_is_found(right: str, wrong: str, words: str) -> None:
    board = copy.deepcopy(BOARD)
    for panel in panels(board):
        for target in panel["targets"]:
            for key in ("expr", "legendFormat"):
                target[key] = target[key].replace(right, wrong)
    assert board != BOARD
    assert any(words in fault for fault in faults(board))


def test_the_dashboard_can_be_provisioned() -> None:
    """As Grafana's file provider and its sidecar take it: no id, a fixed uid, and no data source of somebody's own."""
    assert BOARD["uid"] == "foveate" and "id" not in BOARD and "__inputs" not in BOARD
    assert BOARD["schemaVersion"] >= 36
    source, session = BOARD["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    named = {"type": "prometheus", "uid": "${datasource}"}
    targets = [target for panel in panels(BOARD) for target in panel["targets"]]
    assert all(each["datasource"] == named for each in [session, *panels(BOARD), *targets])
    metric, label = re.findall(r"label_values\((\w+), (\w+)\)", session["query"]["query"])[0]
    assert label in SERIES[metric]


def test_every_panel_says_what_it_shows() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(BOARD)]
    assert len(set(titles)) == len(titles) > 15
    for panel in panels(BOARD):
        assert len(panel["description"]) > 20 and panel["fieldConfig"]["defaults"]["unit"]
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(set(refs)) == len(refs)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells


def test_the_monitor_scrapes_the_port_at_which_ray_exports() -> None:
    """Engines record in worker pods and drivers on the head: both kinds of pods are scraped at port ``metrics``."""
    monitors = yaml.safe_load_all((ROOT / "deploy" / "podmonitor.yaml").read_text())
    for monitor in monitors:
        assert "metrics" in [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]]
        assert all("metricRelabelings" not in endpoint for endpoint in monitor["spec"]["podMetricsEndpoints"])
