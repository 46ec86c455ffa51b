"""A real Prometheus that scraped a real run answers every query of every panel."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("grafana_foundation_sdk")

from tests.agent.conftest import until
from tests.agent.test_prometheus_server import prometheus  # noqa: F401
from tests.exporters.test_grafana import queries

VARIABLES = {"$__rate_interval": "10s", "$__range": "1m", "$run": ".*", "$layer": ".*"}


@pytest.mark.prometheus
def test_a_real_prometheus_answers_every_query(prometheus, tmp_path, start_training, start_agent):  # noqa: F811
    training = start_training(tmp_path / "seen")
    agent = start_agent(tmp_path / "seen", "--linger", "2")
    until(lambda: prometheus.query("stabwatch_step > 20"), 60)
    there = set(re.findall(r"^(stabwatch_\w+?)(?:\{| )", agent.metrics(), re.MULTILINE))
    wanted = []
    for uid, title, expr in queries():
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        prometheus.labels(expr)  # valid, whatever it gives
        shown = set(re.findall(r"stabwatch_\w+", expr)) <= there
        if shown and not re.search(r"> 0|== 1|layer!=", expr):  # those show trouble, and there is none
            wanted.append((uid, title, expr))
    assert len(wanted) > 50
    until(lambda: all(prometheus.labels(expr) for _, _, expr in wanted), 20, "every panel shows something")
    training.kill()
