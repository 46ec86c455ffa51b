"""A run of another trainer's log, as records of a run log."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from stabwatch.analysis.compare.compare import compare
from stabwatch.analysis.readers.log import Column, LogRun
from stabwatch.analysis.readers.records import ForeignLog
from stabwatch.analysis.replay import replay_run
from stabwatch.analysis.sources import open_sources
from stabwatch.cli.app import app
from stabwatch.errors import LogError, RunLogError
from stabwatch.exporters.sink import write_run
from stabwatch.exporters.tables import ParquetSink
from tests.exporters.scraping import scrapes


def column(name: str, role: str, steps, values, lines=None) -> Column:
    steps = np.asarray(steps)
    return Column(name, role, steps, np.asarray(values, float), np.arange(len(steps)) if lines is None else lines)


def foreign(n: int = 200, jump: float = 1.0, times: bool = True, name: str = "theirs") -> ForeignLog:
    """A loss at every step, an evaluation at every 50th, a restart from 99 to 80."""
    rng = np.random.default_rng(0)
    steps = np.concatenate([np.arange(100), np.arange(80, n)])
    loss = (2 + np.exp(-steps / 30)) * np.exp(0.02 * rng.standard_normal(len(steps)))
    loss[140:] *= jump
    loss[50] = math.nan
    lines = np.arange(len(steps)) * 2 + 1
    every = np.arange(0, len(steps), 50)
    columns = (
        column("train/loss", "loss", steps, loss, lines),
        column("gnorm", "grad_norm", steps, np.full(len(steps), 0.5), lines),
        column("lr", "learning_rate", steps, np.full(len(steps), 1e-3), lines),
        column("val", "eval_loss", steps[every], np.full(len(every), 2.5), lines[every] + 1),
    )
    clock = 1.7e9 + np.arange(len(steps)) if times else np.full(len(steps), np.nan)
    return ForeignLog(Path(f"{name}.log"), LogRun(name, columns, steps, lines, clock, config={"batch": 8}))


def test_its_columns_are_series():
    log = foreign()
    (block,) = log.stream()
    series = {str(key): block.values[:, i] for i, key in enumerate(block.layout.keys)}
    assert len(block) == 220 and block.steps[100] == 80, "a restart goes back, and both stretches stay"
    assert math.isnan(series["loss"][50]) and block.measured[50].any()
    assert series["loss_nonfinite_total"][50] == 1
    assert series["gradient_norm_before_clip"] == pytest.approx(0.5)
    assert np.isfinite(series["logged_value[val]"]).sum() == 5
    assert (np.diff(block.times) == 1).all() and log.meta.config == {"batch": 8}


def test_the_rules_judge_it():
    fired = {(a.rule, a.step) for a in replay_run(foreign(jump=3.0)).alerts if a.state == "firing"}
    assert ("NonFinite", 50) in fired and ("LossSpike", 122) in fired, "three points in a row"


def test_it_is_compared_and_exported(tmp_path):
    (pair,) = compare([foreign(), foreign(jump=1.3, name="mine")]).pairs
    assert abs(pair.loss.step - 120) <= 2 and pair.diverged[0].signal == "loss"
    assert write_run(foreign(), ParquetSink(tmp_path / "x.parquet")) == pq.read_table(tmp_path / "x.parquet").num_rows
    (last,) = [t for t, _ in scrapes(foreign(), [], 15.0)][-1:]
    assert last == pytest.approx(1.7e9 + 219, abs=15)


def test_without_times_there_is_nothing_for_prometheus(tmp_path):
    log = foreign(times=False)
    assert len(replay_run(log).alerts) > 0
    with pytest.raises(RunLogError, match="has no times"):
        list(scrapes(log, [], 15.0))
    assert write_run(log, ParquetSink(tmp_path / "x.parquet", wide=True)) == 220
    assert pq.read_table(tmp_path / "x.parquet")["time"].null_count == 220


def test_a_log_without_lines_is_split_where_its_columns_go_back():
    steps = np.array([0, 1, 2, 1, 2, 3])
    none = np.full(6, -1)
    run = LogRun("x", (column("l", "loss", steps, range(6), none),), steps, none, np.full(6, np.nan))
    (block,) = ForeignLog(Path("x"), run).stream()
    assert block.steps.tolist() == steps.tolist() and block.values[:, 0].tolist() == list(range(6))
    nothing = LogRun("x", (), np.empty(0, int), np.empty(0, int), np.empty(0))
    assert list(ForeignLog(Path("x"), nothing).stream()) == []


@pytest.fixture
def theirs(tmp_path):
    """Folders with a log each: nanoGPT's, with another learning rate and a jump; and Hugging Face's state."""
    rng = np.random.default_rng(0)
    for name, rate, jump in (("calm", 1e-3, 1.0), ("jumps", 3e-3, 3.0)):
        loss = (2 + np.exp(-np.arange(300) / 60)) * np.exp(0.01 * rng.standard_normal(300))
        loss[200:] *= jump
        (tmp_path / name).mkdir()
        lines = (f"iter {i}: loss {x:.4f}, lr {rate}, time 50.00ms, mfu 30.00%" for i, x in enumerate(loss))
        (tmp_path / name / "train.log").write_text("\n".join(lines))
    state = {"log_history": [{"step": i, "loss": 2.0, "learning_rate": 1e-3} for i in range(100)]}
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "trainer_state.json").write_text(json.dumps(state))
    return tmp_path


def test_a_folder_with_somebody_s_log_is_a_run(theirs):
    calm, hf = open_sources([theirs / "calm", theirs / "hf"])
    assert sum(len(block) for block in calm.stream()) == 300 and sum(len(block) for block in hf.stream()) == 100
    with pytest.raises(LogError, match="has no log"):
        open_sources([theirs])


def test_the_commands_take_somebody_s_logs(theirs):
    run = lambda *args: CliRunner().invoke(app, [str(a) for a in args])  # noqa: E731
    compared = run("compare", theirs / "calm", theirs / "jumps")
    assert "0.003" in compared.output and "diverge at step 200" in compared.output, compared.output
    replayed = run("replay", theirs / "jumps", theirs / "calm", "--json")
    spikes = next(t for t in json.loads(replayed.output)["rules"] if t["rule"] == "LossSpike")
    assert replayed.exit_code == 1 and [i["first_step"] for i in spikes["incidents"]] == [200]
    exported = run("export", theirs / "calm", "--csv", "-o", theirs / "out.csv", "--wide")
    assert exported.exit_code == 0 and len((theirs / "out.csv").read_text().splitlines()) == 301
