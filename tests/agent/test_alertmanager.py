"""A run goes wrong; a real Prometheus with the shipped rules tells a real Alertmanager, which inhibits what follows."""

from __future__ import annotations

import json
import socket
import subprocess
import time

import pytest
import yaml

from tests.agent.conftest import ROOT, get, until
from tests.agent.test_prometheus_server import Prometheus

pytestmark = pytest.mark.prometheus
CONFIG = ROOT / "exporters" / "alertmanager.yml"


@pytest.fixture
def alertmanager(tmp_path):
    config = yaml.safe_load(CONFIG.read_text())
    config["route"]["group_wait"] = "100ms"
    (tmp_path / "alertmanager.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with open(tmp_path / "alertmanager.log", "wb") as log:
        process = subprocess.Popen(
            ["prometheus-alertmanager", f"--config.file={tmp_path / 'alertmanager.yml'}",
             f"--storage.path={tmp_path / 'alerts'}", f"--web.listen-address=127.0.0.1:{port}",
             "--cluster.listen-address="],
            stdout=log, stderr=log,
        )  # fmt: skip
    url = f"127.0.0.1:{port}"

    def ready():
        assert process.poll() is None, (tmp_path / "alertmanager.log").read_text()
        try:
            return get(f"http://{url}/-/ready")[0] == 200
        except OSError:
            return False

    try:
        until(ready, 30)
        yield url
    finally:
        process.kill()
        process.wait(10)


def _alerts(url):
    found = json.loads(get(f"http://{url}/api/v2/alerts")[2])
    return {a["labels"]["alertname"]: a for a in found}


def test_the_example_is_accepted():
    done = subprocess.run(["amtool", "check-config", str(CONFIG)], capture_output=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_that_turns_nan_arrives_and_inhibits_what_follows(tmp_path, alertmanager, new_log, start_agent):
    server = Prometheus(tmp_path, alertmanager=alertmanager)
    try:
        until(server.ready, 30)
        began = time.time()
        log = new_log("night", now=lambda step: began + 0.001 * step, created=began)
        start_agent(log.path)
        log.write(range(60))
        until(lambda: server.query("stabwatch_step").get(()) == 59, 30)
        assert "StabwatchNonFinite" not in _alerts(alertmanager)
        for step in range(60, 64):
            row = log.row(step)
            log.put(row, "loss", "", "mean", sum=1e4)
            log.folder.append(log.table, step, log.now(step), row)
        dead = log.row(64)
        log.put(dead, "loss", "", "mean", sum=float("nan"), nonfinite=1)
        log.folder.append(log.table, 64, log.now(64), dead)
        until(lambda: {"StabwatchNonFinite", "StabwatchLossSpike"} <= _alerts(alertmanager).keys(), 60)
        found = _alerts(alertmanager)
        cause, consequence = found["StabwatchNonFinite"], found["StabwatchLossSpike"]
        assert cause["labels"]["severity"] == "critical" and cause["labels"]["run"] == "night"
        assert cause["annotations"]["runbook_url"].endswith("NonFinite.md")
        assert until(lambda: _alerts(alertmanager)["StabwatchLossSpike"]["status"]["state"] == "suppressed", 30)
        assert consequence["labels"]["run"] == "night"
    finally:
        server.process.kill()
        server.process.wait(10)
