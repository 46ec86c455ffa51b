"""A run goes wrong; a real Prometheus with the shipped rules tells a real Alertmanager, which inhibits what follows."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time

import pytest
import yaml

from stabwatch.alerts.promql import groups
from tests.agent.conftest import ROOT, get, until
from tests.agent.test_prometheus_server import Prometheus

pytestmark = pytest.mark.prometheus
CONFIG = ROOT / "exporters" / "alertmanager.yml"


@pytest.fixture
def login():
    """Lines of a web configuration that asks for a name and a password; none here."""
    return ""


@pytest.fixture
def alertmanager(tmp_path, login):
    (tmp_path / "web.yml").write_text(login)
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
             "--cluster.listen-address=", f"--web.config.file={tmp_path / 'web.yml'}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    url = f"127.0.0.1:{port}"

    def ready():
        assert process.poll() is None, (tmp_path / "alertmanager.log").read_text()
        try:
            return get(f"http://{url}/-/ready")[0] in (200, 401)
        except OSError:
            return False

    try:
        until(ready, 60)
        yield url
    finally:
        process.kill()
        process.wait(10)


def _alerts(url, headers=None):
    found = json.loads(get(f"http://{url}/api/v2/alerts", headers=headers)[2])
    return {a["labels"]["alertname"]: a for a in found}


def _turn_nan(log, first):
    """A spike of the loss, and then no number any more."""
    for step in range(first, first + 4):
        row = log.row(step)
        log.put(row, "loss", "", "mean", sum=1e4)
        log.folder.append(log.layout, step, log.now(step), row)
    dead = log.row(first + 4)
    log.put(dead, "loss", "", "mean", sum=float("nan"), nonfinite=1)
    log.folder.append(log.layout, first + 4, log.now(first + 4), dead)


def test_the_example_is_accepted():
    done = subprocess.run(["amtool", "check-config", str(CONFIG)], capture_output=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_that_turns_nan_arrives_and_inhibits_what_follows(tmp_path, alertmanager, new_log, start_agent):
    server = Prometheus(tmp_path, alertmanager=alertmanager)
    try:
        until(server.ready, 60)
        began = time.time()
        log = new_log("night", now=lambda step: began + 0.001 * step, created=began)
        start_agent(log.path)
        log.write(range(60))
        until(lambda: server.query("stabwatch_step").get(()) == 59, 60)
        assert "StabwatchNonFinite" not in _alerts(alertmanager)
        _turn_nan(log, 60)
        until(lambda: {"StabwatchNonFinite", "StabwatchLossSpike"} <= _alerts(alertmanager).keys(), 60)
        found = _alerts(alertmanager)
        cause, consequence = found["StabwatchNonFinite"], found["StabwatchLossSpike"]
        assert cause["labels"]["severity"] == "critical" and cause["labels"]["run"] == "night"
        assert cause["annotations"]["runbook_url"].endswith("NonFinite.md")
        assert until(lambda: _alerts(alertmanager)["StabwatchLossSpike"]["status"]["state"] == "suppressed", 60)
        assert consequence["labels"]["run"] == "night"
    finally:
        server.process.kill()
        server.process.wait(10)


PASSWORD = "test"


@pytest.mark.parametrize(
    "login",
    ["basic_auth_users:\n  admin: $2b$12$hNf2lSsxfm0.i4a.1kVpSOVyBCfIB51VRjgBUyv6kdnyTlgWj81Ay\n"],
    ids=["with a password"],
)
def test_without_a_prometheus_the_same_alerts_arrive(alertmanager, new_log, start_agent, monkeypatch, tmp_path):
    """Same labels and annotations as the generated rules give, so that the example's inhibitions hold."""
    headers = {"Authorization": "Basic " + base64.b64encode(b"admin:test").decode()}
    assert get(f"http://{alertmanager}/api/v2/alerts")[0] == 401
    (tmp_path / "address").write_text(f"http://admin:{PASSWORD}@{alertmanager}/\n")
    monkeypatch.setenv("STABWATCH_ALERTMANAGER_FILE", str(tmp_path / "address"))
    began = time.time()
    log = new_log("night", now=lambda step: began + 0.001 * step, created=began)
    agent = start_agent(log.path)
    log.write(range(60))
    _turn_nan(log, 60)
    until(lambda: {"StabwatchNonFinite", "StabwatchLossSpike"} <= _alerts(alertmanager, headers).keys(), 60)
    found = _alerts(alertmanager, headers)
    cause = found["StabwatchNonFinite"]
    [rule] = [
        a for g in groups()["groups"] for a in g["rules"]
        if a.get("alert") == "StabwatchNonFinite" and a["labels"]["severity"] == "critical"
    ]  # fmt: skip
    assert cause["labels"] == {"alertname": rule["alert"], **rule["labels"], "run": "night"}
    assert cause["annotations"].keys() == rule["annotations"].keys()
    assert cause["annotations"]["summary"] == rule["annotations"]["summary"].replace("{{ $labels.run }}", "night")
    assert until(lambda: _alerts(alertmanager, headers)["StabwatchLossSpike"]["status"]["state"] == "suppressed", 60)
    log.write(range(65, 600))
    until(lambda: "StabwatchLossSpike" not in _alerts(alertmanager, headers), 60)
    assert f":{PASSWORD}" not in agent.said() + (log.path / "meta.json").read_text()


def test_an_alertmanager_that_is_not_there_is_said_once_and_counted(new_log, start_agent, monkeypatch):
    monkeypatch.setenv("STABWATCH_ALERTMANAGER", "http://admin:hush@127.0.0.1:9")
    began = time.time()
    log = new_log("alone", now=lambda step: began + 0.001 * step, created=began)
    agent = start_agent(log.path)
    log.write(range(60))
    _turn_nan(log, 60)
    until(lambda: 'stabwatch_agent_errors_total{run="alone"} 1.0' in agent.metrics(), 60)
    time.sleep(2.5)
    said = agent.said()
    assert said.count("the Alertmanager did not accept the alerts") == 1 and "hush" not in said
