"""Run logs as data frames: the values are those of the log, and what is not there is said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import stabwatch
from stabwatch.errors import RunLogError, SeriesError
from stabwatch.runlog import Accumulator, Event, RecordLayout, RunFolder, host_accumulator, read_run
from stabwatch.runlog.schema import META
from tests.agent.synthetic import Log, meta
from tests.cli.conftest import make_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder of runs: sick, healthy, one that ended by an exception, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("query")
    make_run(folder / "sick", sick=True, created=1_790_000_000.0)
    make_run(folder / "healthy", sick=False, steps=60)
    log = Log(folder / "broken-off", layers=["one"])
    log.write(range(30))
    log.end(29, "exception", error="KeyError: 'x'")
    log.folder.close()
    make_run(folder / "of-another-version", sick=False, steps=2)
    text = json.loads((folder / "of-another-version" / META).read_text())
    (folder / "of-another-version" / META).write_text(json.dumps({**text, "schema": 99}))
    return folder


def test_a_series_has_the_values_of_the_log(root):
    frame = stabwatch.open_run(root / "sick").series("attention_logit_max", layer="blocks.0.attn")
    assert list(frame.columns) == ["run", "path", "step", "time", "signal", "layer", "head", "value"]
    steps, values = read_run(root / "sick").series("attention_logit_max", "blocks.0.attn")
    assert frame["step"].tolist() == steps.tolist() == list(range(0, 300, 25))
    assert frame["value"].tolist() == values.tolist()
    assert set(frame["layer"]) == {"blocks.0.attn"} and set(frame["run"]) == {"sick"}
    assert str(frame["time"].dtype).startswith("datetime64") and frame["time"].dt.tz is not None
    assert frame["head"].tolist() == [0] * 12, "the head that each value belongs to"


def test_layers_are_chosen_by_name_pattern_or_several(root):
    run = stabwatch.open_run(root / "sick")
    every = run.series("attention_logit_max")
    assert list(dict.fromkeys(every["layer"])) == [f"blocks.{i}.attn" for i in range(4)]
    assert len(run.series("attention_logit_max", layer="blocks.*")) == len(every) == 48
    assert len(run.series("attention_logit_max", layer=["blocks.1.attn", "blocks.3.*"])) == 24
    assert set(run.series("attention_logit_max", head=2)["layer"]) == {"blocks.2.attn"}
    assert len(run.series("attention_logit_max", head=9)) == 0


def test_arrow_without_pandas(root):
    table = stabwatch.open_run(root / "sick").series("loss", arrow=True)
    assert isinstance(table, pa.Table) and table.column_names[-1] == "value" and "head" not in table.column_names
    code = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'pandas' else real(name, package)\n"
        f"import stabwatch; print(type(stabwatch.open_run({str(root / 'sick')!r}).series('loss')).__module__)\n"
        f"print(stabwatch.runs({str(root)!r}, verdict=False).num_rows, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.split() == ["pyarrow.lib", "4", "False"], done.stderr


def test_what_is_not_there_is_said(root, tmp_path):
    run = stabwatch.open_run(root / "sick")
    with pytest.raises(SeriesError, match="no signal 'attention_logit_mx'. Did you mean 'attention_logit_max'"):
        run.series("attention_logit_mx")
    with pytest.raises(SeriesError, match="without `stabwatch_` here: give 'loss'"):
        run.series("stabwatch_loss")
    with pytest.raises(SeriesError, match=r"no layer 'blocks.9.attn' .*Did you mean 'blocks.\d.attn'.* It has: blocks"):
        run.series("attention_logit_max", layer="blocks.9.attn")
    with pytest.raises(SeriesError, match="`loss` is not kept by head"):
        run.series("loss", head=0)
    with pytest.raises(SeriesError, match="has no values of `attention_entropy`. The log says: its forward never ran."):
        run.series("attention_entropy")
    with pytest.raises(SeriesError, match="is the log of rank 0, and has nothing of rank 3"):
        run.series("loss", rank=3)
    assert len(run.series("loss", rank=0)) == 300
    assert "loss" in run and "attention_entropy" not in run
    with pytest.raises(RunLogError, match="no such file or folder"):
        stabwatch.open_run(tmp_path / "nowhere")
    with pytest.raises(RunLogError, match="neither a run folder"):
        stabwatch.runs(tmp_path)


def test_values_of_one_rank(tmp_path):
    layout = RecordLayout.build([Accumulator("loss", "", "mean"), Accumulator("rank_loss", "", "rank_spread")])
    folder = RunFolder(tmp_path / "run", meta("run", world_size=4))
    for step in range(6):
        row = np.array([1, 2.0, 0, 4, 8.0, 3.0, step % 3, 1.0], np.float32)[: layout.width]
        folder.append(layout, step, 100.0 + step, row)
    folder.close()
    run = stabwatch.open_run(tmp_path / "run")
    mine = run.series("rank_loss_max", rank=2)
    assert (mine["step"].tolist(), mine["rank"].tolist()) == ([2, 5], [2, 2])
    with pytest.raises(SeriesError, match="`loss` is merged over the 4 ranks of this run"):
        run.series("loss", rank=1)
    with pytest.raises(SeriesError, match="not kept by head"):
        run.series("rank_loss_max", head=1)


def test_logged_numbers_and_signals_that_are_never_measured(attach):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    for step in range(4):
        model(torch.ones(4, 3)).sum().backward()
        watch.log(policy_kl=float(step) if step < 3 else float("nan"))
        optimizer.step()
        optimizer.zero_grad()
    watch.detach()
    run = stabwatch.open_run(watch.run_dir)
    frame = run.series("policy_kl")
    assert frame["value"].tolist()[:3] == [0.0, 1.0, 2.0] and np.isnan(frame["value"].iloc[3]), "NaN was measured"
    assert {"loss", "policy_kl"} <= set(run.summary()["signal"])
    assert run.events("start")["step"].tolist() == [0]


def test_steps_that_were_trained_again_are_there_once(tmp_path):
    layout = RecordLayout.build([host_accumulator("learning_rate")])
    folder = RunFolder(tmp_path / "run", meta("run"))
    for attempt, first in enumerate((0, 5)):
        folder.event(Event("start", 100.0 * attempt, first, {"attempt": attempt + 1}))
        for step in range(first, 10):
            folder.append(layout, step, 100.0 * attempt + step, np.array([1.0, attempt], np.float32)[: layout.width])
    folder.close()
    frame = stabwatch.open_run(tmp_path / "run").series("learning_rate")
    assert frame["step"].tolist() == list(range(10))
    assert stabwatch.runs(tmp_path, verdict=False, arrow=True).select(["records", "attempts"]).to_pylist() == [
        {"records": 10, "attempts": 2}
    ]


def test_other_trainers_logs_are_opened_too(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss,kl\n" + "".join(f"{s},{3 - s / 100},{s}\n" for s in range(50)))
    run = stabwatch.open_run(tmp_path / "log.csv")
    assert run.series("loss")["value"].tolist() == pytest.approx([3 - s / 100 for s in range(50)])
    assert run.series("kl")["step"].tolist() == list(range(50))


def test_the_table_of_runs(root):
    table = stabwatch.runs(root).set_index("run")
    assert set(table.index) == {"sick", "healthy", "broken-off", "of-another-version"}
    sick = table.loc["sick"]
    assert (sick["state"], sick["severity"], sick["cause"]) == ("finished", "critical", "AttentionLogitGrowth")
    assert "attention" in sick["verdict"].lower() and sick["records"] == 300 and sick["last_step"] == 299
    assert sick["last_loss"] == pytest.approx(read_run(root / "sick").series("loss")[1][-1])
    assert table.loc["healthy", "severity"] == "calm"
    assert table.loc["broken-off", "state"] == "exception"
    odd = table.loc["of-another-version"]
    assert odd["state"] == "unreadable" and "schema 99" in odd["verdict"] and np.isnan(odd["records"])


def test_the_state_of_a_run_is_that_of_its_process(tmp_path):
    log = Log(tmp_path / "mine", layers=["one"])
    log.write(range(3))
    other = Log(tmp_path / "gone", layers=["one"], pid=2**22 - 1)
    other.write(range(3))
    table = stabwatch.runs(tmp_path, verdict=False, arrow=True)
    assert dict(zip(table["run"].to_pylist(), table["state"].to_pylist(), strict=True)) == {
        "mine": "running", "gone": "killed",
    }  # fmt: skip
    assert table["verdict"].null_count == 2, "not asked for is not known"
    log.folder.close()
    other.folder.close()


def test_the_recipes_of_the_page_run(root, tmp_path, monkeypatch):
    """docs/query.md, all its code, on these runs."""
    pytest.importorskip("duckdb")
    (tmp_path / "stabwatch-runs").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "query.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/query.md", "exec"), names)
    first = names["first"]
    assert [row[0] for row in first.fetchall()] == ["sick"], "runs by the first step at which their logits exceed 50"
    assert names["joined"].fetchall()[0][0] == 300 + 60 + 30
