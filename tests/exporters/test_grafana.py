"""The dashboards: everything declared stands on a panel, and the rules of Grafana's dashboard-linter hold."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("grafana_foundation_sdk")

from stabwatch.alerts import DERIVED
from stabwatch.exporters.grafana import DASHBOARDS, render
from stabwatch.signals import CATALOGUE
from tests.agent.conftest import ROOT

PAGES = {page.uid: json.loads(render(page)) for page in DASHBOARDS}


def _panels(page):
    return [p for p in page["panels"] if p["type"] != "row"]


def queries():
    """Dashboard, panel and query of every target."""
    return [(uid, p["title"], t["expr"]) for uid, page in PAGES.items() for p in _panels(page) for t in p["targets"]]


def test_the_committed_files_are_what_the_declarations_give():
    for page in DASHBOARDS:
        assert (ROOT / "grafana" / "dashboards" / page.file).read_text() == render(page), "run scripts/generate"


def test_every_signal_and_every_derived_gauge_stands_on_a_panel():
    shown = {word for _, _, expr in queries() for word in re.findall(r"stabwatch_\w+", expr)}
    assert {s.metric for s in CATALOGUE} | {d.metric for d in DERIVED} <= shown


@pytest.mark.parametrize("uid", PAGES)
def test_the_rules_of_grafanas_dashboard_linter_hold(uid):
    page = PAGES[uid]
    assert page["uid"] == uid and page["editable"] is False and page["title"].startswith("stabwatch / ")
    variables = {v["name"]: v for v in page["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and "run" in variables
    assert page["links"] and page["annotations"]["list"][0]["expr"].startswith("ALERTS{")
    for panel in _panels(page):
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "$datasource"
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "$datasource" and target["refId"]
            if re.search(r"\b(increase|rate)\(", target["expr"]):
                assert "[$__rate_interval]" in target["expr"], target["expr"]
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval", "__range"}
            assert used <= variables.keys(), target["expr"]


@pytest.mark.parametrize("uid", PAGES)
def test_panels_lie_in_the_grid_and_on_nothing_else(uid):
    taken, ids = set(), []
    for panel in PAGES[uid]["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        ids.append(panel["id"])
    assert len(set(ids)) == len(ids)
