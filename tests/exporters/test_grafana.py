"""The dashboards: everything declared stands on a panel, and the rules of Grafana's dashboard-linter hold."""

from __future__ import annotations

import copy
import json
import re

import jsonschema
import pytest

pytest.importorskip("grafana_foundation_sdk")

from stabwatch.alerts import DERIVED
from stabwatch.exporters.grafana import DASHBOARDS, render, with_plugins
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
    assert {s.metric.removesuffix("<name>") for s in CATALOGUE} | {d.metric for d in DERIVED} <= shown


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
            used = set(re.findall(r"\$([a-z_]\w*)", target["expr"])) - {"__rate_interval", "__range"}
            assert used <= variables.keys(), target["expr"]


SCHEMA = json.loads((ROOT / "tests" / "exporters" / "grafana-schema.json").read_text())
NOT_IN_THE_SCHEMA = {
    # Grafana reads a Prometheus annotation's query from here; the schema leaves a data source's own fields out
    ("annotations/list/*", "expr"),
    # the SDK has one type for variables of every kind, and these are of the kind `interval`
    *(("templating/list/*", name) for name in ("auto", "auto_count", "auto_min")),
    # in the SDK's Grafana 11; 13 moved it
    ("panels/*/options", "footer"),
}  # fmt: skip


def _against_grafanas_schema(page):
    """Where, and what: of each violation of @grafana/schema, down to the branch that comes closest."""

    def told(error, at):
        at = [*at, *error.relative_path]
        if error.context:
            yield from told(max(error.context, key=lambda c: len(c.absolute_path)), at)
        elif error.validator == "additionalProperties":
            extra = set(error.instance) - set(error.schema["properties"])
            yield from (("/".join("*" if isinstance(p, int) else p for p in at), name) for name in extra)
        else:
            yield "/".join(map(str, at)), error.message

    def violations(name, value, *at):
        for error in jsonschema.Draft7Validator(SCHEMA[name]).iter_errors(value):
            yield from told(error, at)

    yield from violations("Dashboard", page)
    for panel in _panels(page):
        yield from violations(f"{panel['type']}.Options", panel["options"], "panels", 0, "options")
        custom = panel["fieldConfig"]["defaults"].get("custom", {})
        yield from violations(f"{panel['type']}.FieldConfig", custom, "panels", 0, "fieldConfig")


@pytest.mark.parametrize("uid", PAGES)
def test_grafanas_own_schema_holds(uid):
    assert set(_against_grafanas_schema(PAGES[uid])) <= NOT_IN_THE_SCHEMA


@pytest.mark.parametrize("spoil", [
    lambda page: page["panels"][1].update(options=None),
    lambda page: page["panels"][1].update(kind="x"),
    lambda page: page["templating"]["list"][0].update(hide="no"),
    lambda page: page.update(editable="no"),
])  # fmt: skip
def test_the_schema_tells_what_is_wrong(spoil):
    page = copy.deepcopy(PAGES["stabwatch-overview"])
    spoil(page)
    assert not set(_against_grafanas_schema(page)) <= NOT_IN_THE_SCHEMA


def test_the_signals_of_plugins_get_panels_where_theirs_belong():
    share = {"name": "negative_ratio", "help": "Share below zero.", "unit": "ratio", "scope": "layer", "kind": "gauge"}
    count = {"name": "oops_total", "help": "How often.", "unit": "1", "scope": "run", "kind": "counter"}
    pages = {p.uid: json.loads(render(p)) for p in with_plugins([share, share, count, {"name": "loss"}, {"odd": 1}])}
    added = {
        uid: [p for p in _panels(page) if p["title"] not in {q["title"] for q in _panels(PAGES[uid])}]
        for uid, page in pages.items()
    }
    assert [(uid, [(p["title"], p["type"]) for p in panels]) for uid, panels in added.items() if panels] == [
        ("stabwatch-run", [("Oops", "timeseries")]), ("stabwatch-layers", [("Negative ratio", "heatmap")]),
    ]  # fmt: skip
    assert all(set(_against_grafanas_schema(page)) <= NOT_IN_THE_SCHEMA for page in pages.values())


def _heat_maps():
    return {p["title"]: p for page in PAGES.values() for p in _panels(page) if p["type"] == "heatmap"}


def test_heat_maps_show_the_layers_where_a_signal_is_bad():
    """The smallest values where a declaration or a rule says that low is bad, and those in the strong colours."""
    maps = _heat_maps()
    low = {title for title, p in maps.items() if "bottomk(" in p["targets"][0]["expr"]}
    assert low == {title for title, p in maps.items() if p["options"]["color"]["reverse"]}
    declared = {s.name for s in CATALOGUE if s.label == "layer" and s.kind == "gauge" and s.worst == "min"}
    rules = {"attention_entropy_rise", "attention_logit_steps_to_limit", "gradient_to_largest_ratio"}
    assert low == {name.replace("_", " ").replace("rms", "RMS").capitalize().replace("rms", "RMS")
                   for name in declared | rules}  # fmt: skip
    for title, p in maps.items():
        expr = p["targets"][0]["expr"]
        assert expr.startswith("min by" if title in low else "max by")
        assert ("topk(" in expr) != (title in low)


def test_heat_maps_have_every_row_and_every_cell():
    """With the format `heatmap` Grafana shows one row of series without buckets; by default no number below 1e-9."""
    for title, p in _heat_maps().items():
        assert p["targets"][0].get("format", "time_series") == "time_series", title
        assert p["options"]["filterValues"]["le"] < -1e100, title


def test_heat_maps_have_layers_in_their_order():
    (expr,) = {p["targets"][0]["expr"] for title, p in _heat_maps().items() if title == "Weight RMS"}
    steps = re.findall(r'"at", "([^"]+)", "layer", "([^"]+)"', expr)
    assert len(steps) == 3

    def at(layer):
        made = ""
        for template, pattern in steps:
            if found := re.fullmatch(pattern, layer):
                made = found.expand(re.sub(r"\$\{?(\d)\}?", r"\\g<\1>", template))
        return made

    layers = ["embed", "h.2.attn", "h.2.mlp", "h.9", "h.10", "h.99.mlp.experts.3", "h.100", "h.126.attn", "head"]
    places = [at(layer) for layer in layers]
    assert places == sorted(set(places))


def test_numbers_of_alerts_are_green_at_zero_alone():
    stats = {p["title"]: p["fieldConfig"]["defaults"]["thresholds"]["steps"]
             for page in PAGES.values() for p in _panels(page) if p["type"] == "stat"}  # fmt: skip
    assert {title: [(s["value"], s["color"]) for s in steps] for title, steps in stats.items()} == {
        "Runs watched": [(None, "text")],
        "Critical": [(None, "green"), (1, "red")],
        "Warnings": [(None, "green"), (1, "orange")],
    }


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
