"""Sinks that are services, against the real thing where it is installed, else against a small receiver."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest

from stabwatch.errors import ConfigError, MissingExtraError, SinkError
from stabwatch.exporters.registry import find_sink, live_sinks
from stabwatch.exporters.sink import SinkDeclaration, make_sink, write_run
from stabwatch.runlog import RunLog
from tests.agent.conftest import get, until
from tests.agent.synthetic import Log
from tests.cli.test_app import stabwatch
from tests.processes import run_python


@pytest.fixture
def run(tmp_path: Path) -> Path:
    log = Log(tmp_path / "run", layers=["one"])
    log.write(range(40))
    log.end(39)
    log.folder.close()
    return log.path


class Receiver:
    """Keeps the bodies of POST and PUT requests."""

    def __init__(self, status: int = 200) -> None:
        bodies = self.bodies = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()

            do_PUT = do_POST

            def log_message(self, *_) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver():
    made = []

    def make(status: int = 200) -> Receiver:
        made.append(Receiver(status))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def test_otlp_has_what_a_scrape_shows(run, receiver, monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    got = receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", got.url)
    sent = write_run(RunLog(run), make_sink(find_sink("otlp"), interval=1.0))
    points: dict[str, list] = {}
    for path, body in got.bodies:
        assert path == "/v1/metrics"
        request = ExportMetricsServiceRequest.FromString(body)
        for metric in request.resource_metrics[0].scope_metrics[0].metrics:
            points.setdefault(metric.name, []).extend(
                (metric.gauge or metric.sum).data_points or metric.sum.data_points
            )
    assert sent == sum(map(len, points.values())) > 100
    log = RunLog(run)
    (batch,) = log.poll()
    loss = points["stabwatch_loss"][-1]
    column = [str(key) for key in batch.layout.keys].index("loss")
    assert loss.as_double == pytest.approx(batch.values[-1, column], rel=1e-6)
    assert {a.key: a.value.string_value for a in loss.attributes} == {"run": "run"}
    assert loss.time_unix_nano == pytest.approx(1e9 * batch.times[-1], rel=1e-8)


def test_otlp_that_is_refused_is_a_sink_error(run, receiver, monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver(400).url)
    with pytest.raises(SinkError, match="did not accept the points"):
        write_run(RunLog(run), make_sink(find_sink("otlp")))


def test_a_pushgateway_gets_the_last_values(run, receiver, monkeypatch):
    got = receiver()
    monkeypatch.setenv("STABWATCH_PUSHGATEWAY", got.url)
    assert write_run(RunLog(run), make_sink(find_sink("pushgateway"), interval=1.0)) == len(got.bodies) > 0
    path, body = got.bodies[-1]
    assert path == "/metrics/job/stabwatch/run/run"
    assert b'stabwatch_step{run="run"} 39.0' in body and b'state="finished"} 1.0' in body


def test_a_real_pushgateway_takes_it(run, tmp_path, monkeypatch):
    program = shutil.which("prometheus-pushgateway")
    if program is None:
        pytest.skip("needs Debian's prometheus-pushgateway")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen([program, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(f"http://{address}/-/ready"), what="the Pushgateway")
        monkeypatch.setenv("STABWATCH_PUSHGATEWAY", address)
        write_run(RunLog(run), make_sink(find_sink("pushgateway")))
        kept = get(f"http://{address}/metrics")[2].decode()
        assert next(line for line in kept.split("\n") if line.startswith("stabwatch_step{")).endswith(" 39")
    finally:
        server.kill()
        server.wait()


def _answers(url: str) -> bool:
    try:
        return get(url)[0] == 200
    except OSError:
        return False


def test_a_pushgateway_that_is_away_or_not_named_is_one_sentence(run, monkeypatch):
    monkeypatch.delenv("STABWATCH_PUSHGATEWAY", raising=False)
    with pytest.raises(ConfigError, match="address of a Pushgateway in STABWATCH_PUSHGATEWAY"):
        make_sink(find_sink("pushgateway"))
    monkeypatch.setenv("STABWATCH_PUSHGATEWAY", "127.0.0.1:9")
    with pytest.raises(SinkError, match="cannot be reached"):
        write_run(RunLog(run), make_sink(find_sink("pushgateway")))


EXPORT = """
import sys
from stabwatch.cli import main
sys.argv = ["stabwatch", "export", sys.argv[1], "--mlflow"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
"""The command; what follows it in the same process need not import MLflow again, which takes seconds."""


def _exported(run: Path, check: str):
    """What `check` prints of MLflow's database after an export."""
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{run.parent}/mlflow.db"}
    done = run_python("-c", EXPORT + check, run, cwd=run.parent, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_mlflow_has_the_records_once(run):
    pytest.importorskip("mlflow")
    check = (
        "import mlflow, json; c = mlflow.MlflowClient(); e = c.get_experiment_by_name('stabwatch');"
        "(r,) = c.search_runs([e.experiment_id]); h = c.get_metric_history(r.info.run_id, 'stabwatch/loss');"
        "print(json.dumps([r.info.run_name, r.info.status, [m.step for m in h]]))"
    )
    assert _exported(run, check) == ["run", "FINISHED", list(range(40))]


@pytest.mark.slow
def test_mlflow_has_name_tags_and_notes(tmp_path):
    pytest.importorskip("mlflow")
    log = Log(tmp_path / "run", layers=["one"], name="baseline", tags=["gpt", "a b"], notes="first try")
    log.write(range(2))
    log.folder.close()
    check = (
        "import mlflow, json; c = mlflow.MlflowClient(); e = c.get_experiment_by_name('stabwatch');"
        "(r,) = c.search_runs([e.experiment_id]); print(json.dumps([r.info.run_name, r.data.tags]))"
    )
    name, tags = _exported(log.path, check)
    assert (name, tags["mlflow.note.content"]) == ("baseline", "first try")
    assert {"stabwatch.tag.gpt", "stabwatch.tag.a b"} <= set(tags)


def test_trackio_has_the_records_once(run, tmp_path):
    pytest.importorskip("trackio")
    env = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    done = stabwatch("export", run, "--trackio", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(tmp_path / "trackio" / "stabwatch.db")) as store:
        rows = store.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [("run", step) for step in range(40)]
    assert json.loads(rows[-1][2])["stabwatch/loss"] == pytest.approx(2.5, abs=1)


def test_wandb_writes_offline(run, tmp_path):
    pytest.importorskip("wandb")
    env = os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    done = stabwatch("export", run, "--wandb", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    from stabwatch.analysis.sources import open_sources

    (read,) = open_sources([file])
    steps = [step for batch in read.stream() for step in batch.steps.tolist()]
    assert steps == list(range(40))


def test_a_missing_extra_says_what_to_install():
    absent = SinkDeclaration(name="x", help="", make=lambda: None, modules=("not_there.at_all",), extra="x")
    with pytest.raises(MissingExtraError, match=r"^The sink x needs not_there.at_all: pip install 'stabwatch\[x\]'.$"):
        make_sink(absent)


def test_a_misspelt_sink_and_one_that_cannot_follow_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'pushgateway'"):
        live_sinks(["pushgatway"])
    with pytest.raises(ConfigError, match="parquet cannot follow a run"):
        live_sinks(["parquet"])
