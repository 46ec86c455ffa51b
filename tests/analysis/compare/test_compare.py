"""Runs side by side: synthetic ones whose difference is known, and small real ones."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from stabwatch.analysis.compare.compare import compare
from stabwatch.analysis.compare.curve_set import load_curve_sets
from stabwatch.analysis.sources import open_sources
from stabwatch.runlog import Event, RunLog, read_run
from stabwatch.runlog.downsample import load, merged
from tests.agent.synthetic import Log


@pytest.fixture
def make(tmp_path):
    """A finished run of some steps; `change(log)` before it is written."""

    def run(name: str, steps: int = 300, change=lambda log: None, **more):
        log = Log(tmp_path / name, **more)
        change(log)
        log.write(range(steps))
        log.end(steps)
        log.folder.close()
        return log.path

    return run


def test_what_parted_first_and_where(make):
    found = compare(open_sources([make("calm", sick=False), make("sick", sick=True)]))
    (pair,) = found.pairs
    assert pair.loss.differ is None, "the loss is blind"
    assert {p.signal.rpartition("_")[0] for p in pair.diverged} <= {"attention_logit", "attention"}
    lower = {p.layer: p.step for p in pair.diverged if p.signal == "attention_logit_lower"}
    assert list(lower) == sorted(lower, key=lower.get) and len(lower) == 4
    assert pair.diverged[0].layer == "blocks.0.attn" and pair.diverged[0].step < 20
    assert pair.diverged[0].divergence.end > 100
    assert not found.differences and found.window == 1
    json.dumps(found.to_dict(), allow_nan=False)


def test_configuration_that_differs(make):
    def adam(rate):
        group = {"lr": rate, "betas": [0.9, 0.999], "eps": 1e-8}
        return lambda log: log.folder.event(Event("optimizer", 1.0, 0, {"name": "AdamW", "groups": [group]}))

    a = make(
        "a", change=adam(1e-3), config={"overhead_budget": 0.01, "port": 1}, model={"name": "GPT", "parameters": 5}
    )
    b = make("b", 200, change=adam(1e-2), config={"overhead_budget": 0.02, "port": 2}, world_size=8)
    found = {d.name: d.values for d in compare(open_sources([a, b])).differences}
    assert found == {
        "model.parameters": (5, 1_200_000),
        "optimizer.groups.lr": (1e-3, 1e-2),
        "world_size": (1, 8),
        "stabwatch.overhead_budget": (0.01, 0.02),
        "steps": (300, 200),
    }


def test_learning_rate_sensitivity_by_its_definition(make):
    def rates(log, rate, final):
        plain = log.row

        def row(step):
            values = plain(step)
            log.put(values, "loss", "", "mean", sum=5.0 if step == 0 else final)
            log.put(values, "host", "learning_rate", "host", last=rate * min(1, (step + 1) / 10))
            return values

        log.row = row

    sweep = ((1e-3, 3.0), (1e-2, 2.0), (1e-1, math.nan), (1.0, 40.0))
    runs = [make(f"r{i}", 40, lambda log, s=s: rates(log, *s)) for i, s in enumerate(sweep)]
    (found,) = compare(open_sources(runs)).sensitivity
    assert found.rates == pytest.approx((1e-3, 1e-2, 1e-1, 1.0))
    assert found.losses == pytest.approx((3.0, 2.0, 5.0, 5.0)), "at most the initial loss, which NaN counts as too"
    assert found.value == pytest.approx(np.mean([1.0, 0.0, 3.0, 3.0]))
    assert (found.best, found.best_rate, found.initial) == pytest.approx((2.0, 1e-2, 5.0))
    assert not compare(open_sources(runs[:2])).sensitivity, "two rates are no sweep"


def test_a_long_run_is_thinned_by_the_merge_law(make):
    path = make("long", 900)
    whole, (run, window) = read_run(path), load(RunLog(path), most=200)
    assert window == 8 and sum(map(len, run.blocks)) == 113
    assert run.steps.tolist() == list(range(0, 900, 8))
    steps, upper = whole.series("attention_logit_upper", "blocks.0.attn")
    expected = [upper[steps // 8 == k].max() for k in range(113)]
    assert run.series("attention_logit_upper", "blocks.0.attn")[1].tolist() == pytest.approx(expected)
    losses = whole.series("loss")[1]
    assert run.series("loss")[1] == pytest.approx([losses[k * 8 : k * 8 + 8].mean() for k in range(113)], rel=1e-5)
    (block,) = whole.blocks
    pieces = [merged(block, 8).rows[i] for i in range(5)]
    law = block.layout.operators
    np.testing.assert_allclose(pieces, [law.merge(block.rows[i * 8 : i * 8 + 8]) for i in range(5)], rtol=1e-6)


def test_names_stay_apart_and_one_window_serves_all(make, tmp_path, monkeypatch):
    long, short = make("long", 600), make("short", 100)
    monkeypatch.setattr("stabwatch.runlog.downsample.load.__defaults__", (None, 1, 200))
    subjects = load_curve_sets([*map(RunLog, (long, short, short))])
    assert [s.window for s in subjects] == [4, 4, 4]
    assert [s.name for s in subjects] == ["long", str(short), str(short)]
    assert subjects[1].run.steps.tolist() == list(range(0, 100, 4))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The demo's model at two widths."""
    from stabwatch.demo import DemoConfig, train

    root = tmp_path_factory.mktemp("real")
    watch = {"agent": False, "verbose": False, "every_step": True}
    for width in (16, 32):
        train(DemoConfig(steps=40, width=width, layers=1, heads=2, batch=4, context=16, lr=1e-2,
                         run_dir=root / str(width), watch=watch | {"run": f"w{width}"}))  # fmt: skip
    return [root / "16", root / "32"]


def test_singular_values_and_gains_across_widths(real):
    found = compare(open_sources(real))
    assert found.widths.widths == pytest.approx((1.0, 2.0), rel=0.05), "by the parameters of the sub-layers"
    assert {row.layer for row in found.widths.gains} == {"blocks.0.attn", "blocks.0.mlp"}
    matrices = {row.layer: row for row in found.widths.singular_values}
    assert {"blocks.0.attn.qkv.weight.q", "blocks.0.attn.proj.weight", "blocks.0.mlp.0.weight"} <= matrices.keys()
    row = matrices["blocks.0.mlp.0.weight"]
    ratio = math.log(row.values[1] / row.values[0]) / math.log(found.widths.widths[1])
    assert row.exponent == pytest.approx(ratio) and 0 < row.exponent < 1.5
    exponent, spread, share = found.widths.summary(found.widths.singular_values)
    assert spread > 1 and 0 <= share <= 1 and math.isfinite(exponent)


def test_the_optimizer_stands_in_the_log(real):
    facts = load_curve_sets(open_sources(real))[0].facts
    assert (facts["optimizer.name"], facts["optimizer.groups.eps"]) == ("AdamW", 1e-8)
    assert "optimizer.groups.params" not in facts
    assert {d.name for d in compare(open_sources(real)).differences} >= {"model.parameters"}
