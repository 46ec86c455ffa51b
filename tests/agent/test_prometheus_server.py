"""A real Prometheus, with the configuration we ship, finds and scrapes real agents."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.agent.conftest import ROOT, get, until

pytestmark = pytest.mark.prometheus
CONFIG = ROOT / "exporters" / "prometheus.yml"


class Prometheus:
    """A server that scrapes what the target files under `folder` name, four times a second or as told."""

    def __init__(self, folder: Path, alertmanager: str = "", every: str = "250ms") -> None:
        config = yaml.safe_load(CONFIG.read_text())
        config["rule_files"] = [str(CONFIG.parent / name) for name in config["rule_files"]]
        if alertmanager:
            config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
        config["global"]["scrape_interval"] = config["global"]["evaluation_interval"] = every
        (job,) = config["scrape_configs"]
        job["file_sd_configs"][0]["files"] = [str(folder / "targets" / "*.json")]
        (folder / "targets").mkdir()
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        self.log = folder / "prometheus.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
                 f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
                stdout=log, stderr=log,
            )  # fmt: skip

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return get(self.url + "-/ready")[0] == 200
        except OSError:
            return False

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Values of an instant query, by the labels `rule` or `layer` if there are any."""
        answer = json.loads(get(self.url + "api/v1/query?" + urllib.parse.urlencode({"query": expression}))[2])
        assert answer["status"] == "success", answer
        return {
            tuple(r["metric"][label] for label in ("rule", "layer") if label in r["metric"]): float(r["value"][1])
            for r in answer["data"]["result"]
        }

    def labels(self, expression: str) -> list[dict[str, str]]:
        answer = json.loads(get(self.url + "api/v1/query?" + urllib.parse.urlencode({"query": expression}))[2])
        return [r["metric"] for r in answer["data"]["result"]]


@pytest.fixture
def prometheus(tmp_path) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path)
    try:
        until(server.ready, 60)
        yield server
    finally:
        server.process.kill()
        server.process.wait(10)


def test_promtool_accepts_the_configuration():
    done = subprocess.run(["promtool", "check", "config", str(CONFIG)], capture_output=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_is_found_scraped_and_its_end_is_seen(prometheus, tmp_path, start_training, start_agent):
    run = tmp_path / "found"
    training = start_training(run)
    agent = start_agent(run, "--linger", "2")
    until(lambda: prometheus.query('up{run="found", job="stabwatch"}').get(()) == 1, 60)
    until(lambda: prometheus.query('stabwatch_step{run="found"} > 3'))
    layers = prometheus.query("stabwatch_output_rms")
    assert {("blocks.0.attn",), ("lm_head",)} <= layers.keys()
    (labels,) = prometheus.labels("stabwatch_loss")
    assert labels["run"] == "found"
    assert not any(name.startswith("exported_") for name in labels)
    assert prometheus.query('stabwatch_alerts_firing{rule="TrainingStopped"}') == {("TrainingStopped",): 0.0}
    training.kill()
    until(lambda: prometheus.query('stabwatch_alerts_firing{rule="TrainingStopped"}') == {("TrainingStopped",): 1.0})
    assert prometheus.query('stabwatch_run_state{state="killed"} == 1')
    assert agent.process.wait(60) == 0
    until(lambda: not prometheus.query("up"), what="the target is gone")


def test_a_spike_between_two_scrapes_and_a_loss_that_turns_nan(prometheus, new_log, start_agent):
    began = time.time()
    log = new_log("spike", now=lambda step: began + 0.001 * step, created=began)
    start_agent(log.path)
    log.write(range(10))
    until(lambda: prometheus.query("stabwatch_step").get(()) == 9, 60)

    spike = log.row(10)
    log.put(spike, "loss", "", "mean", sum=1e6)
    log.folder.append(log.layout, 10, log.now(10), spike)
    log.write(range(11, 14))
    until(lambda: prometheus.query("stabwatch_step").get(()) == 13)
    assert prometheus.query("stabwatch_loss")[()] < 10
    assert prometheus.query("stabwatch_loss_window_max")[()] == 1e6
    seen = prometheus.query("max_over_time(stabwatch_loss[1h])")[()]
    assert seen < 10, "the plain gauge saw the spike: the test proves nothing"

    dead = log.row(14)
    log.put(dead, "loss", "", "mean", sum=float("nan"), nonfinite=1)
    log.folder.append(log.layout, 14, log.now(14), dead)
    until(lambda: not prometheus.query("stabwatch_loss"))
    assert prometheus.query("increase(stabwatch_loss_nonfinite_total[1m])")[()] > 0
    assert prometheus.query("stabwatch_loss_nonfinite_total")[()] == 1
    assert prometheus.query('stabwatch_values_nonfinite_total{signal="loss"}')[()] == 1
    assert prometheus.query("stabwatch_step")[()] == 14
