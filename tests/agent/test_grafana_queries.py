"""A real Prometheus that scraped real runs answers every query of every panel."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("grafana_foundation_sdk")

from tests.agent.conftest import ROOT, until
from tests.agent.test_prometheus_server import Prometheus
from tests.exporters.test_grafana import queries

VARIABLES = {"$__rate_interval": "30s", "$__range": "1m", "$run": ".*", "$layer": ".*"}


@pytest.fixture
def whole_runs(tmp_path):
    """Six runs, one of them of two ranks, that have every signal between them; all of their processes."""
    job = [sys.executable, "-m", "tests.agent.whole_run"]
    more = [[str(tmp_path / name), name] for name in ("mistakes", "policy", "game", "loader")]
    two = [[str(tmp_path / "two"), str(rank), str(tmp_path / "store")] for rank in (0, 1)]
    started = [subprocess.Popen([*job, *args], cwd=ROOT) for args in ([str(tmp_path / "one")], *more, *two)]
    yield [tmp_path / name for name in ("one", "mistakes", "policy", "game", "loader", "two")]
    for process in started:
        process.kill()
        process.wait(10)


@pytest.fixture
def prometheus(tmp_path):
    """A scrape of a thousand series may take its time on a busy machine."""
    server = Prometheus(tmp_path, every="3s")
    until(server.ready, 30)
    yield server
    server.process.kill()
    server.process.wait(10)


@pytest.mark.slow
@pytest.mark.prometheus
@pytest.mark.timeout(600)
def test_a_real_prometheus_answers_every_query(prometheus, whole_runs, start_agent):
    for run in whole_runs:
        until(lambda run=run: list(run.glob("signals-*")), 180, "a run log")
        start_agent(run)
    wanted = []
    for uid, title, expr in queries():
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        wanted.append((uid, title, expr))
    assert len(wanted) > 150

    def unanswered():
        wanted[:] = [entry for entry in wanted if not prometheus.labels(entry[2])]
        return wanted

    try:
        until(lambda: not unanswered(), 180)
    except AssertionError:
        raise AssertionError(f"These panels show nothing: {wanted}") from None
