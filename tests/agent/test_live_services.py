"""Live sinks into the real thing, while a real training goes on: OTLP, MLflow and TensorBoard at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stabwatch.runlog import read_run
from tests.agent.conftest import until
from tests.exporters.test_services import Receiver

READ = (
    "import mlflow, json; c = mlflow.MlflowClient(); e = c.get_experiment_by_name('stabwatch')\n"
    "runs = c.search_runs([e.experiment_id]) if e else []\n"
    "h = c.get_metric_history(runs[0].info.run_id, 'stabwatch/loss') if runs else []\n"
    "print(json.dumps([[r.info.run_name, r.info.status] for r in runs] + sorted([m.step, m.value] for m in h)))"
)


def mlflow_runs(folder: Path) -> list:
    """Name and state of the run, and its losses by step."""
    done = subprocess.run([sys.executable, "-c", READ], env=os.environ, capture_output=True, text=True, cwd=folder)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []


def tensorboard_losses(folder: Path) -> list[list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [[e.step, e.value] for e in events.Scalars("loss")] if "loss" in events.Tags()["scalars"] else []


def test_a_training_reaches_three_services_while_it_goes_on(attach, tmp_path, monkeypatch):
    for module in ("opentelemetry.exporter.otlp.proto.http", "mlflow", "sqlalchemy", "tensorboard"):
        pytest.importorskip(module)
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    receiver = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(
        model, optimizer, agent=True, port=0, linger=0, sinks="otlp,mlflow,tensorboard", name="baseline", run="r"
    )

    def train(steps: int) -> None:
        for _ in range(steps):
            torch.nn.functional.cross_entropy(model(torch.randn(16, 8)), torch.randint(0, 4, (16,))).backward()
            optimizer.step()
            optimizer.zero_grad()

    train(20)
    board = watch.run_dir / "tensorboard"
    until(lambda: board.is_dir() and len(tensorboard_losses(board)) >= 20, 60, what="TensorBoard, while it trains")
    train(20)
    watch.detach()
    written = [list(pair) for pair in zip(*(a.tolist() for a in read_run(watch.run_dir).series("loss")), strict=True)]
    assert len(written) == 40
    until(lambda: ["baseline", "FINISHED"] in mlflow_runs(tmp_path), 60, what="MLflow")
    assert mlflow_runs(tmp_path)[1:] == [[step, pytest.approx(value)] for step, value in written]
    assert tensorboard_losses(board) == [[step, pytest.approx(value)] for step, value in written]
    points = {}
    for _, body in receiver.bodies:
        for metric in ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics[0].metrics:
            points.setdefault(metric.name, []).extend(metric.gauge.data_points)
    assert points["stabwatch_loss"][-1].as_double == pytest.approx(written[-1][1]), "the end is sent too"
    assert not [e for e in read_run(watch.run_dir).events if e.kind == "sink"], "no sink has failed"
    receiver.server.shutdown()
    receiver.server.server_close()
