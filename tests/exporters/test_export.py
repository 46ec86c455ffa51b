"""What is exported, read back by those it is for: Prometheus, pyarrow, TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import math
import socket
import subprocess
import time
import urllib.parse
from wsgiref.util import setup_testing_defaults

import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as text_string_to_families

from stabwatch.agent.server import App
from stabwatch.agent.state import Follower
from stabwatch.exporters.openmetrics import OpenMetricsSink, suitable_interval
from stabwatch.exporters.sink import seconds_of, write_run
from stabwatch.exporters.tables import CsvSink, ParquetSink, column
from stabwatch.runlog import Accumulator, Event, Meta, RecordLayout, RunFolder, RunLog, SeriesKey, read_run
from stabwatch.runlog.atomic import atomic_output
from tests.agent.conftest import get, until
from tests.agent.synthetic import CREATED, LAYERS, Log
from tests.exporters.scraping import scrapes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    log = Log(tmp_path_factory.mktemp("runs") / 'odd "name"', layers=[*LAYERS[:2], "a\\b"])
    log.write(range(200))
    dead = log.row(200)
    log.put(dead, "loss", "", "mean", sum=math.nan, nonfinite=1)
    log.folder.append(log.layout, 200, log.now(200), dead)
    log.end(200, "exception")
    log.folder.close()
    return log.path


@pytest.fixture(scope="module")
def text(run) -> str:
    out = io.BytesIO()
    assert write_run(RunLog(run), OpenMetricsSink(out, 0.5)) > 1000
    return out.getvalue().decode()


def test_the_last_scrape_is_what_the_agent_serves(run, text):
    last = {}
    for family in text_string_to_metric_families(text):
        for s in family.samples:
            last[s.name, frozenset(s.labels.items())] = s.value
    agent = Follower(run)
    agent.poll()
    agent.lease.release()
    environ = {"PATH_INFO": "/metrics"}
    setup_testing_defaults(environ)
    page = b"".join(App(agent)(environ, lambda *answer: None)).decode()
    served = {}
    for family in text_string_to_families(page):
        served.update({(s.name, frozenset(s.labels.items())): s.value for s in family.samples})
    live = {"stabwatch_alert_value", "stabwatch_alert_info"}  # of alerts that fire now: where, and how much
    assert {name for name, _ in served} - live == {name for name, _ in last} - {"stabwatch_loss"}
    live.add("stabwatch_run_info")  # the agent's has its address
    gone = {key for key in last if key not in served}
    assert {name for name, _ in gone} - live == {"stabwatch_loss", "stabwatch_alerts_firing"}, (
        "absent now: NaN, and severities"
    )
    differ = {
        k for k in served if k[0] not in live and not np.isclose(last[k], served[k], rtol=1e-6) and "window" not in k[0]
    }
    assert not differ


def test_an_earlier_scrape_is_what_an_agent_showed_then(run, tmp_path):
    """At each multiple of the interval: all records up to it, and nothing later."""
    log = Log(tmp_path / "part")
    half = RunLog(run)
    shown = dict(scrapes(half, [], 5.0))
    assert list(shown) == [CREATED + 5.0 * i for i in range(5)]
    families = {m.name: m for m in shown[CREATED + 5.0]}
    assert families["stabwatch_step"].samples[0].value == 50
    exact = read_run(run).series("attention_logit_lower", "blocks.0.attn")[1][50]
    (lower,) = [s for s in families["stabwatch_attention_logit_lower"].samples if s.labels["layer"] == "blocks.0.attn"]
    assert lower.value == pytest.approx(exact, rel=1e-6)
    log.folder.close()


def test_a_long_silence_is_not_filled(tmp_path):
    log = Log(tmp_path / "paused")
    log.write(range(5))
    log.now = lambda step: CREATED + 1e6 + step
    log.write(range(5, 10))
    log.folder.close()
    times = [t for t, _ in scrapes(RunLog(log.path), RunLog(log.path).poll_events(), 15.0)]
    assert len(times) < 260 and times[-1] > CREATED + 1e6 and times == sorted(set(times))
    assert suitable_interval(seconds_of(RunLog(log.path), [])) == 15.0, "no end event: the age of the files counts"


@pytest.mark.prometheus
def test_a_real_prometheus_serves_an_old_run(text, tmp_path):
    (tmp_path / "run.om").write_text(text)
    made = subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(tmp_path / "run.om"), str(tmp_path / "tsdb")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (tmp_path / "prometheus.yml").write_text("{}\n")
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(
            ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}/"
        until(lambda: _answers(url), 30)
        query = _Query(url, CREATED + 20.0)
        assert query('stabwatch_step{run="odd \\"name\\""}') == [200.0]
        assert query("count(count by (layer) (stabwatch_attention_logit_lower))") == [3.0]
        assert query('stabwatch_attention_logit_lower{layer="a\\\\b.attn"}')[0] > 90
        assert query('max(stabwatch_alerts_firing{rule="AttentionLogitGrowth",severity="critical"})') == [1.0]
        assert query('stabwatch_run_state{state="exception"}') == [1.0]
        assert query("increase(stabwatch_loss_nonfinite_total[10s]) > 0")
        assert query('count(stabwatch_run_info{model="GPT"})') == [1.0]
        assert _Query(url, CREATED + 10.0)("stabwatch_step") == [100.0]
    finally:
        server.kill()
        server.wait(10)


def _answers(url: str) -> bool:
    try:
        return get(url + "-/ready")[0] == 200
    except OSError:
        return False


class _Query:
    def __init__(self, url: str, at: float) -> None:
        self.url, self.at = url, at

    def __call__(self, expression: str) -> list[float]:
        asked = urllib.parse.urlencode({"query": expression, "time": self.at})
        answer = json.loads(get(f"{self.url}api/v1/query?{asked}")[2])
        assert answer["status"] == "success", answer
        return [float(r["value"][1]) for r in answer["data"]["result"]]


def test_long_and_wide_tables_hold_each_measured_value(run, tmp_path):
    log = read_run(run)
    measured = sum(int(b.measured.sum()) for b in log.blocks)
    assert write_run(RunLog(run), ParquetSink(tmp_path / "long.parquet")) == measured
    long = pq.read_table(tmp_path / "long.parquet").to_pandas()
    one = long[(long.signal == "output_rms") & (long.layer == "blocks.1.attn")]
    steps, values = log.series("output_rms", "blocks.1.attn")
    assert (one.step.to_numpy() == steps).all() and (one.value.to_numpy() == values).all()
    assert long.time.iloc[0].timestamp() == pytest.approx(CREATED)

    assert write_run(RunLog(run), ParquetSink(tmp_path / "wide.parquet", wide=True)) == len(log.steps)
    wide = pq.read_table(tmp_path / "wide.parquet")
    column = wide["output_rms/blocks.1.attn"]
    assert column.null_count == len(log.steps) - len(steps)
    loss = wide["loss"].to_numpy()
    assert math.isnan(loss[-1]) and wide["loss"].null_count == 0, "a NaN that was measured is no null"


def test_csv_is_read_back_with_its_gaps_and_nans(run):
    out = io.BytesIO()
    write_run(RunLog(run), CsvSink(out, wide=True))
    rows = list(csv.DictReader(io.StringIO(out.getvalue().decode())))
    assert rows[1]["output_rms/blocks.1"] == "" and float(rows[4]["output_rms/blocks.1"]) > 0
    assert rows[200]["loss"] == "nan" and float(rows[0]["time"]) == CREATED
    out = io.BytesIO()
    write_run(RunLog(run), CsvSink(out))
    first = next(csv.DictReader(io.StringIO(out.getvalue().decode())))
    assert (first["step"], first["signal"], first["layer"]) == ("0", "loss", "")


def test_a_changed_layout_and_an_empty_log(tmp_path):
    log = Log(tmp_path / "run", layers=["one"])
    log.write(range(5))
    other = Log(tmp_path / "other", layers=["two"])
    log.layout, log.layers, log.attention = other.layout, other.layers, other.attention
    log.sites, log.weights = other.sites, other.weights
    log.write(range(5, 10))
    for each in (log, other):
        each.folder.close()
    write_run(RunLog(log.path), ParquetSink(tmp_path / "wide.parquet", wide=True))
    wide = pq.read_table(tmp_path / "wide.parquet")
    assert wide["attention_logit_lower/one.attn"].is_valid().to_pylist() == [True] * 5 + [False] * 5
    assert wide["attention_logit_lower/two.attn"].is_valid().to_pylist() == [False] * 5 + [True] * 5
    for form in (False, True):
        assert write_run(RunLog(other.path), ParquetSink(tmp_path / "empty.parquet", wide=form)) == 0
        assert pq.read_table(tmp_path / "empty.parquet").num_rows == 0
    out = io.BytesIO()
    assert (write_run(RunLog(other.path), OpenMetricsSink(out)), out.getvalue()) == (0, b"# EOF\n")


def test_tensorboard_reads_it(run, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from stabwatch.exporters.tensorboard import TensorBoardSink

    log = read_run(run)
    assert write_run(RunLog(run), TensorBoardSink(tmp_path / "tb")) == sum(int(b.measured.sum()) for b in log.blocks)
    read = accumulators.EventAccumulator(str(tmp_path / "tb"), size_guidance={"scalars": 0}).Reload()
    scalars = read.Scalars("output_rms/blocks.1.attn")
    steps, values = log.series("output_rms", "blocks.1.attn")
    assert [s.step for s in scalars] == steps.tolist()
    assert np.allclose([s.value for s in scalars], values, rtol=1e-6)
    assert scalars[1].wall_time == pytest.approx(CREATED + 0.4)
    assert math.isnan(read.Scalars("loss")[-1].value)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out.csv"
    with atomic_output(target) as draft:
        draft.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_output(target) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
    for generation in ("first", "second"):
        with atomic_output(tmp_path / "folder") as draft:
            draft.mkdir()
            (draft / generation).touch()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["second"]


def test_events_before_the_first_record_are_no_scrape(tmp_path):
    log = Log(tmp_path / "run")
    log.folder.event(Event("end", time.time(), 0, {"reason": "exception"}))
    assert list(scrapes(RunLog(log.path), RunLog(log.path).poll_events(), 15.0)) == []


def test_numbers_of_the_users_keep_their_names_in_tables():
    names = ["policy/kl", "loss", "loss/valid", "logged/loss", "step", "logged", "Ключ"]
    own = [column(SeriesKey("logged_value", name)) for name in names]
    assert own[:4] == ["policy/kl", "logged/loss", "logged/loss/valid", "logged/logged/loss"]
    assert own[4:] == ["logged/step", "logged/logged", "Ключ"]
    assert column(SeriesKey("loss", "")) == "loss" and len(set(own)) == len(own)


def test_a_users_number_is_read_back_under_its_name(tmp_path):
    layout = RecordLayout.build([Accumulator("loss", "", "mean"), Accumulator("logged", "policy/kl", "mean")])
    folder = RunFolder(tmp_path / "run", Meta(run="r", created=CREATED, host="h", pid=1, pid_started=0.0))
    for step in range(3):
        folder.append(layout, step, CREATED + step, np.array([1, 2, 0, 1, step, 0], np.float32))
    folder.close()
    write_run(RunLog(tmp_path / "run"), ParquetSink(tmp_path / "long.parquet"))
    long = pq.read_table(tmp_path / "long.parquet").to_pandas()
    assert long[long.signal == "policy/kl"].value.tolist() == [0, 1, 2]
    write_run(RunLog(tmp_path / "run"), ParquetSink(tmp_path / "wide.parquet", wide=True))
    assert pq.read_table(tmp_path / "wide.parquet")["policy/kl"].to_pylist() == [0, 1, 2]
    out = io.BytesIO()
    write_run(RunLog(tmp_path / "run"), OpenMetricsSink(out, 1.0))
    assert 'stabwatch_logged_policy_kl{run="r",name="policy/kl"} 2.0' in out.getvalue().decode()
