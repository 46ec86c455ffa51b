"""A real agent at each cardinality: fewer series, the same alerts, and its cap."""

from __future__ import annotations

import time

import pytest

from tests.agent.conftest import until


def _metrics(agent, last):
    """What /metrics shows once the log has been read."""
    shown = f'stabwatch_step{{run="night"}} {last:.1f}'
    return until(lambda: text if shown in (text := agent.metrics()) else "", 60)


def _layers(text, metric):
    lines = [line for line in text.splitlines() if line.startswith(metric + "{")]
    return {line.split('layer="')[1].split('"')[0] for line in lines if 'layer="' in line}


@pytest.mark.parametrize("cardinality", ["run", "block", "layer"])
def test_series_become_fewer_and_alerts_do_not(cardinality, new_log, start_agent):
    now = time.time()
    log = new_log("night", now=lambda step: now + 0.1 * step - 30)
    agent = start_agent(log.path, "--cardinality", cardinality, "--worst", "1")
    log.write(range(300))
    text = _metrics(agent, 299)
    fine = _layers(text, "stabwatch_activation_abs_max")
    groups = {"layer": {"blocks.0", "blocks.1"}, "block": {"blocks.0", "blocks.1"}, "run": {""}}[cardinality]
    assert groups <= fine | {""}
    firing = [ln for ln in text.splitlines() if ln.startswith("stabwatch_alerts_firing{") and ln.endswith(" 1.0")]
    assert firing and any('layer="blocks' in line for line in firing)


def test_what_goes_beyond_the_cap_is_counted(new_log, start_agent):
    log = new_log("night")
    agent = start_agent(log.path, "--max-series", "12")
    log.write(range(40))
    text = _metrics(agent, 39)
    [dropped] = [line for line in text.splitlines() if line.startswith("stabwatch_series_dropped_total{")]
    assert float(dropped.split()[-1]) > 0 and "stabwatch_loss{" in text
