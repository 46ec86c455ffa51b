"""The exposition, byte for byte, and as Prometheus' own linter sees it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from stabwatch.alerts import DERIVED, RULES
from stabwatch.exporters.declared import declared
from stabwatch.exporters.prometheus import DerivedMetric, RunCollector, Snapshot
from stabwatch.runlog import SeriesKey
from stabwatch.signals import CATALOGUE
from stabwatch.signals.reductions import REDUCTIONS

GOLDEN = Path(__file__).parent / "golden" / "metrics.txt"
REFRESH = "STABWATCH_GOLDEN"  # read at import, before the test environment is cleaned
WRITE = REFRESH in os.environ


def snapshot(**more) -> Snapshot:
    """A run with every signal of the catalogue at two layers."""
    keys = tuple(
        SeriesKey(s.name, layer)
        for s in CATALOGUE
        for layer in (("blocks.0", "blocks.1") if s.scope == "layer" else ("",))
    )
    n = np.arange(len(keys), dtype=np.float64)
    given = {
        "run": "golden",
        "info": (("host", "node-1"), ("model", "GPT")),
        "step": 300,
        "time": 1_790_000_030.5,
        "keys": keys,
        "last": 1.5 + n,
        "window": 2.5 + n,
        "totals": n,
        "nonfinite": np.zeros(len(keys), np.int64),
        "derived": tuple((SeriesKey(d.name, "blocks.0" if d.scope == "layer" else ""), 0.25) for d in DERIVED),
        "firing": ((RULES[0].name, RULES[0].severity, "blocks.0"),),
        "violations": ((RULES[0].name, "blocks.0", 2),),
    }
    return Snapshot(**{**given, **more})


def registry(s: Snapshot) -> CollectorRegistry:
    out = CollectorRegistry()
    out.register(
        RunCollector(lambda: s, [DerivedMetric(d.name, d.help) for d in DERIVED], [(r.name, r.severity) for r in RULES])
    )
    return out


def sample(s: Snapshot, name: str, /, **labels: str) -> float | None:
    return registry(s).get_sample_value(name, {"run": s.run, **labels})


def test_the_exposition_is_the_golden_one():
    text = generate_latest(registry(snapshot())).decode()
    if WRITE:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), (
        "What /metrics shows has changed: dashboards and alerts of users depend on it. If it is meant, say so in the "
        f"CHANGELOG and write the file anew: {REFRESH}=1 pytest {Path(__file__).name}"
    )


@pytest.mark.prometheus
def test_promtool_has_nothing_to_object_to():
    text = generate_latest(registry(snapshot()))
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_openmetrics_says_the_same():
    one = {
        (s.name, *sorted(s.labels.items()), s.value)
        for f in parse(generate_latest(registry(snapshot())).decode())
        for s in f.samples
    }
    text = generate_openmetrics(registry(snapshot())).decode()
    other = {(s.name, *sorted(s.labels.items()), s.value) for f in parse_openmetrics(text) for s in f.samples}
    assert one == other


@pytest.mark.parametrize("signal", CATALOGUE, ids=lambda s: s.name)
def test_every_signal_is_exported_as_declared(signal):
    layer = {signal.label: "blocks.0"} if signal.scope == "layer" else {}
    s = snapshot()
    i = s.keys.index(SeriesKey(signal.name, layer.get(signal.label, "")))
    metric = signal.metric.replace("<name>", "blocks_0")
    if signal.kind == "counter":
        assert sample(s, metric, **layer) == s.totals[i]
        return
    assert sample(s, metric, **layer) == s.last[i]
    index = any(f.op == "arg" for f in REDUCTIONS[signal.reduction].fields if f.name in signal.fields)
    assert sample(s, f"{metric}_window_{signal.worst}", **layer) == (None if index else s.window[i])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_gauge_is_ever_nonfinite(bad):
    s = snapshot()
    n = len(s.keys)
    s = snapshot(last=np.full(n, bad), window=np.full(n, bad), nonfinite=np.ones(n, np.int64),
                 derived=tuple((SeriesKey(d.name), bad) for d in DERIVED))  # fmt: skip
    values = [x.value for family in parse(generate_latest(registry(s)).decode()) for x in family.samples]
    assert np.isfinite(values).all()
    assert sample(s, "stabwatch_loss") is None
    assert sample(s, "stabwatch_values_nonfinite_total", signal="loss") == 1
    assert sample(s, "stabwatch_values_nonfinite_total", signal="output_rms") == 2


def test_every_rule_stands_at_zero_before_it_fires():
    s = snapshot(firing=(), violations=())
    for rule in RULES:
        assert sample(s, "stabwatch_alerts_firing", rule=rule.name, severity=rule.severity, layer="") == 0
        assert sample(s, "stabwatch_rule_violations_total", rule=rule.name, layer="") == 0


def test_a_firing_rule_names_its_layer():
    rule = RULES[0]
    s = snapshot()
    assert sample(s, "stabwatch_alerts_firing", rule=rule.name, severity=rule.severity, layer="blocks.0") == 1
    assert sample(s, "stabwatch_alerts_firing", rule=rule.name, severity=rule.severity, layer="") is None
    assert sample(s, "stabwatch_rule_violations_total", rule=rule.name, layer="blocks.0") == 2


HOSTILE = ['a"b', "a\\b", "a\nb", "<img onerror=alert(1)>", "ключ", "\ud800lone", ""]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_hostile_names_come_through_or_are_replaced(name):
    s = snapshot(run=name or "r", keys=(SeriesKey("output_rms", name),), last=np.ones(1), window=np.ones(1),
                 totals=np.zeros(1), nonfinite=np.zeros(1, np.int64))  # fmt: skip
    families = {f.name: f for f in parse(generate_latest(registry(s)).decode())}
    assert families["stabwatch_output_rms"].samples[0].labels["layer"] == name.replace("\ud800", "?")


def test_a_family_that_cannot_be_built_costs_only_itself():
    s = snapshot(derived=((SeriesKey("nobody_declared_this"), 1.0),))
    collector = registry(s)
    text = generate_latest(collector).decode()
    assert 'stabwatch_collect_errors_total{run="golden"} 1.0' in text
    assert 'stabwatch_loss{run="golden"}' in text
    assert 'stabwatch_collect_errors_total{run="golden"} 2.0' in generate_latest(collector).decode()


def test_a_signal_of_another_version_is_still_exported():
    assert declared("from_the_future").metric == "stabwatch_from_the_future"
    assert declared("from_the_future_total").counter


def test_a_snapshot_cannot_be_changed():
    with pytest.raises(AttributeError):
        snapshot().step = 1  # pyright: ignore[reportAttributeAccessIssue]


def _logged(*names: str) -> Snapshot:
    n = len(names)
    keys = tuple(SeriesKey("logged_value", name) for name in names)
    return snapshot(keys=keys, last=1.0 + np.arange(n), window=11.0 + np.arange(n), totals=np.zeros(n),
                    nonfinite=np.arange(n))  # fmt: skip


def test_a_number_of_the_users_is_a_metric_of_its_own_name():
    s = _logged("policy_kl", "reward/mean")
    assert sample(s, "stabwatch_logged_policy_kl", name="policy_kl") == 1.0
    assert sample(s, "stabwatch_logged_policy_kl_window_max", name="policy_kl") == 11.0
    assert sample(s, "stabwatch_logged_reward_mean", name="reward/mean") == 2.0
    assert sample(s, "stabwatch_values_nonfinite_total", signal="logged_reward_mean") == 1


def test_names_that_become_one_metric_are_told_apart_by_their_label():
    s = _logged("a/b", "a.b", "a_b", "kl", "kl_window_max", "ключ", "")
    for text in (generate_latest(registry(s)).decode(), generate_openmetrics(registry(s)).decode()):
        families = list((parse_openmetrics if text.endswith("# EOF\n") else parse)(text))
        assert len({f.name for f in families}) == len(families), "one family for each metric"
        found = {(x.name, x.labels.get("name")): x.value for f in families for x in f.samples}
        assert [found["stabwatch_logged_a_b", name] for name in ("a/b", "a.b", "a_b")] == [1.0, 2.0, 3.0]
        assert found["stabwatch_logged_kl_window_max", "kl"] == 14.0
        assert found["stabwatch_logged_kl_window_max", "kl_window_max"] == 5.0
        assert found["stabwatch_logged_____", "ключ"] == 6.0 and found["stabwatch_logged_", ""] == 7.0


def test_a_parameter_group_is_a_group_and_no_layer():
    s = snapshot(keys=(SeriesKey("group_gradient_norm", "1"),), last=np.ones(1), window=np.ones(1),
                 totals=np.zeros(1), nonfinite=np.zeros(1, np.int64))  # fmt: skip
    assert sample(s, "stabwatch_group_gradient_norm", group="1") == 1.0
