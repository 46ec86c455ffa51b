"""The rules for Prometheus say what the engine says: promtool runs them over what the exporter showed."""

from __future__ import annotations

import math
import re
import subprocess
from collections import defaultdict
from copy import deepcopy
from functools import cache

import pytest
import yaml

from stabwatch.alerts import RULES, Engine
from stabwatch.alerts.catalogue import BY_NAME
from stabwatch.alerts.promql import groups, severities
from stabwatch.exporters.prometheus import RunCollector, Snapshot
from stabwatch.runlog import RecordLayout
from tests.agent.conftest import ROOT
from tests.alerts import test_layer_rules, test_rules
from tests.alerts.scenarios import accumulator, around, block
from tests.sampling import sample

pytestmark = pytest.mark.prometheus
FILE = ROOT / "alerts" / "stabwatch.rules.yaml"
EVERY = 15
"""Records, a second apart, from scrape to scrape."""
SCENARIOS = {**test_rules.SCENARIOS, **test_layer_rules.SCENARIOS}
AFTER = {
    "silent": lambda s: (),
    "fires": lambda s: (),
    "nan": lambda s: ([math.nan] * 60,),
    "gap": lambda s: ([None] * 60,),
    "recovers": lambda s: [s.calm[-70:]] * 10,
}
"""What comes after a run that went wrong; a silent one never does."""


class Watched:
    """An engine over a scenario, scraped every fifteen records."""

    def __init__(self, rule):
        self.engine, self.samples, self.scrapes = Engine(), defaultdict(dict), 0
        self.violations = defaultdict(int)
        self.scenario, self.first, self.layout = SCENARIOS[rule], 0, None

    def show(self, part):
        """Let the engine see the next records: those up to a scrape at once, as a reader would."""
        beside = around(self.scenario.beside, self.first, len(part))
        series = {self.scenario.series: list(part), **beside}
        self.layout = self.layout or RecordLayout.build(map(accumulator, series))
        start = 0
        while start < len(part):
            end = min(start + 1 + -(self.first + start) % EVERY, len(part))
            record = block({k: v[start:end] for k, v in series.items()}, self.first + start, self.layout)
            for alert in self.engine.observe(record):
                if alert.state == "firing":
                    self.violations[alert.rule, alert.layer] += 1
            if (self.first + end - 1) % EVERY == 0:
                self._scrape()
            start = end
        self.first += len(part)

    def copy(self, goes_on):
        """The same state again, with the same layout: a new one would be a new run to the engine.

        goes_on: the engine will see more records.
        """
        kept = (self.layout, self.layout.keys, *([] if goes_on else [self.engine]))
        return deepcopy(self, {id(each): each for each in kept})

    def end(self):
        """Scrape the last record, whichever it was."""
        self._scrape()
        return self

    def _scrape(self):
        firing = tuple(dict.fromkeys((a.rule, a.severity, a.layer) for a in self.engine.active))
        snapshot = Snapshot(run="r", firing=firing, violations=tuple((*k, n) for k, n in self.violations.items()))
        for family in RunCollector(lambda: snapshot, (), [(r.name, r.severity) for r in RULES]).collect():
            for shown in family.samples:
                if shown.name.startswith(("stabwatch_alerts_firing", "stabwatch_rule_violations_total")):
                    labels = ", ".join(f'{k}="{v}"' for k, v in sorted(shown.labels.items()))
                    self.samples[f"{shown.name}{{{labels}}}"][self.scrapes] = shown.value
        self.scrapes += 1

    def series(self):
        return [
            {"series": name, "values": " ".join(f"{at[i]:g}" if i in at else "stale" if i - 1 in at else "_"
                                                for i in range(self.scrapes))}
            for name, at in self.samples.items()
        ]  # fmt: skip


@cache
def _begun(rule, parts):
    """An engine after the first parts of a scenario, which most kinds share."""
    watched = Watched(rule)
    for part in getattr(SCENARIOS[rule], parts):
        watched.show(part)
    return watched


def _watched(rule, kind):
    after = AFTER[kind](SCENARIOS[rule])
    watched = _begun(rule, "healthy" if kind == "silent" else "broken").copy(goes_on=bool(after))
    for part in after:
        watched.show(part)
    return watched.end()


def _expected(rule, severity, layer):
    (alert,) = (
        a for g in groups()["groups"] for a in g["rules"]
        if a.get("alert") == rule.alert and a["labels"]["severity"] == severity
    )  # fmt: skip
    said = {}
    for name, text in alert["annotations"].items():
        text = text.replace("{{ $labels.run }}", "r")
        place = f"Layer {layer}. " if layer else ""
        said[name] = text.replace("{{ with $labels.layer }}Layer {{ . }}. {{ end }}", place)
        said[name] = re.sub(r"\{\{ with printf .*?\{\{ end \}\}", "", said[name])  # no agent tells of it here
    return {
        "exp_labels": {"run": "r", "severity": severity, **({"layer": layer} if layer else {})},
        "exp_annotations": said,
    }


def _test_file(tmp_path, name, tests, rules=FILE):
    path = tmp_path / f"{name}.yaml"
    document = {"rule_files": [str(rules)], "evaluation_interval": f"{EVERY}s", "tests": tests}
    path.write_text(yaml.dump(document, sort_keys=False, width=1000, Dumper=yaml.CSafeDumper))
    return path


def _promtool(*files):
    command = ["promtool", "test", "rules", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def _shipped():
    return yaml.load(FILE.read_text(), yaml.CSafeLoader)["groups"]


def _only(tmp_path, alert):
    """The shipped file without its other rules: promtool evaluates all of a file at every step of every test."""
    found = [rule for group in _shipped() for rule in group["rules"] if rule.get("alert") == alert]
    names = [rule["record"] for group in _shipped() for rule in group["rules"] if "record" in rule]
    assert found and not any(name in rule["expr"] for rule in found for name in names), "no alert reads a record"
    path = tmp_path / f"{alert}.rules.yaml"
    path.write_text(yaml.dump({"groups": [{"name": "one", "rules": found}]}, Dumper=yaml.CSafeDumper))
    return path


def test_promtool_accepts_all_rules_and_every_rule_has_alerts():
    done = subprocess.run(["promtool", "check", "rules", str(FILE)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    alerts = {(a["alert"], a["labels"]["severity"]) for g in groups()["groups"] for a in g["rules"] if "alert" in a}
    assert {(r.alert, s) for r in RULES for s in severities(r)} <= alerts
    pages = ROOT / "docs" / "runbooks"
    health = (pages / "Health.md").read_text()
    for group in groups()["groups"]:
        for alert in group["rules"]:
            if "alert" not in alert:
                continue
            assert alert["annotations"].keys() >= {"summary", "description", "runbook_url"}
            page, _, anchor = alert["annotations"]["runbook_url"].rsplit("/", 1)[1].partition("#")
            assert (pages / page).exists() and (not anchor or f"## {alert['alert']}" in health)


@pytest.mark.parametrize("kind", sample(AFTER, "silent", "fires"))
def test_prometheus_says_what_the_engine_says(kind, tmp_path):
    files = []
    for name in SCENARIOS:
        watched = _watched(name, kind)
        firing = {(a.severity, a.layer) for a in watched.engine.active if a.rule == name}
        assert bool(firing) == (kind in ("fires", "nan", "gap")), (name, firing)
        rule = BY_NAME[name]
        # A level that was left for a graver one, and what was over between two scrapes, is said for some minutes more.
        passed = {(a.severity, a.layer) for a in watched.engine.history if a.rule == name and a.state == "firing"}
        loud = [s for s in severities(rule) if s != "info"][-1]
        if kind != "recovers":
            firing |= passed | {(loud, layer) for severity, layer in passed if severity != "info"}
        test = {
            "interval": f"{EVERY}s",
            "name": name,
            "input_series": watched.series(),
            "alert_rule_test": [
                {
                    "eval_time": f"{(watched.scrapes - 1) * EVERY}s",
                    "alertname": rule.alert,
                    "exp_alerts": [_expected(rule, *pair) for pair in sorted(firing)],
                }
            ],
        }
        files.append(_test_file(tmp_path, name, [test], _only(tmp_path, rule.alert)))
    _promtool(*files)


def test_a_spike_between_two_scrapes_fires(tmp_path):
    """The gauge never showed it, the counter did: from 0, and from nothing for a layer that was never seen."""
    rule = BY_NAME["LossSpike"]
    layered = BY_NAME["AttentionLogitGrowth"]
    zero = {"series": 'stabwatch_alerts_firing{rule="LossSpike",severity="warning",run="r",layer=""}', "values": "0x20"}
    test = {
        "interval": "15s",
        "input_series": [
            zero,
            {"series": 'stabwatch_rule_violations_total{rule="LossSpike",run="r",layer=""}', "values": "0x10 1x10"},
            {
                "series": 'stabwatch_rule_violations_total{rule="AttentionLogitGrowth",run="r",layer="h.0"}',
                "values": "_x10 1x10",
            },
        ],
        "alert_rule_test": [
            {"eval_time": "120s", "alertname": rule.alert, "exp_alerts": []},
            {"eval_time": "180s", "alertname": rule.alert, "exp_alerts": [_expected(rule, "warning", "")]},
            {"eval_time": "180s", "alertname": layered.alert, "exp_alerts": [_expected(layered, "warning", "h.0")]},
        ],
    }
    _promtool(_test_file(tmp_path, "spike", [test]))


def test_the_watchers_own_health(tmp_path):
    series = {
        'up{job="stabwatch",instance="a:1"}': "1x4 0x40",
        'stabwatch_probe_errors_total{run="r"}': "0x4 1x40",
        'stabwatch_overhead_ratio{run="r"}': "0.2x60",
    }
    at = [{"eval_time": "12m", "alertname": f"Stabwatch{name}"} for name in ("AgentDown", "OverheadOverBudget")]
    found = {a["alert"]: a for g in groups()["groups"] for a in g["rules"] if "alert" in a}
    for entry, labels in zip(at, ({"job": "stabwatch", "instance": "a:1"}, {"run": "r"}), strict=True):
        alert = found[entry["alertname"]]
        said = {k: v.replace("{{ $labels.instance }}", "a:1") for k, v in alert["annotations"].items()}
        entry["exp_alerts"] = [{"exp_labels": {**labels, **alert["labels"]}, "exp_annotations": said}]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    _promtool(_test_file(tmp_path, "health", [{"interval": "15s", "input_series": inputs, "alert_rule_test": at}]))


def test_prometheus_tells_where(tmp_path):
    """What it looks up when an alert fires: the machine, the folder, the page, the value, the onset, rank and batch."""
    rule = BY_NAME["ReplicasDiffer"]
    expected = _expected(rule, "critical", 'h."0"')
    expected["exp_annotations"] |= {
        "host": "node-7", "folder": "/runs/r", "page_url": "http://node-7:9478/", "value": "0.0125", "onset": "41",
        "rank": "3", "batch": "step 41: samples 1, 2",
    }  # fmt: skip
    layer = r'layer="h.\"0\""'
    info = f'{{rule="ReplicasDiffer",run="r",{layer},onset="41",rank="3",batch="step 41: samples 1, 2"}}'
    run = '{run="r",host="node-7",folder="/runs/r",page="http://node-7:9478/"}'
    test = {
        "interval": "15s",
        "input_series": [
            {"series": f'stabwatch_alerts_firing{{rule="ReplicasDiffer",severity="critical",run="r",{layer}}}',
             "values": "1x10"},
            {"series": f"stabwatch_run_info{run}", "values": "1x10"},
            {"series": f"stabwatch_alert_info{info}", "values": "1x10"},
            {"series": f'stabwatch_alert_value{{rule="ReplicasDiffer",run="r",{layer}}}', "values": "0.0125x10"},
        ],
        "alert_rule_test": [{"eval_time": "60s", "alertname": rule.alert, "exp_alerts": [expected]}],
    }  # fmt: skip
    _promtool(_test_file(tmp_path, "where", [test]))
