"""Fewer series: groups by the merge law, the worst layers by themselves, alerts as loud as before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabwatch.exporters.cardinality import Coarse, Coarsening, group_of
from stabwatch.exporters.latest import Latest, SeriesCap
from stabwatch.exporters.snapshots import snapshot
from stabwatch.runlog import Accumulator, Meta, RecordBatch, RecordLayout, SeriesKey, host_accumulator
from stabwatch.signals.reductions import REDUCTIONS

META = Meta(run="r", created=0.0, host="h", pid=1, pid_started=0.0)
LAYERS = [f"blocks.{i}.{part}" for i in range(4) for part in ("attn", "mlp")]
CELLS = (
    host_accumulator("learning_rate"),
    Accumulator("loss", "", "mean"),
    *(Accumulator("activation", layer, "moments") for layer in LAYERS),
    *(Accumulator("attention", layer, "attention_bracket") for layer in LAYERS[::2]),
    *(Accumulator("gradient", layer, "moments") for layer in LAYERS),
    Accumulator("logged", "accuracy", "mean"),
)
TABLE = RecordLayout.build(CELLS)


def _rows(seed=0, n=3):
    rng = np.random.default_rng(seed)
    rows = np.empty((n, TABLE.width))
    for accumulator, start in zip(TABLE.accumulators, TABLE.starts, strict=True):
        for i, field in enumerate(REDUCTIONS[accumulator.reduction].fields):
            draw = rng.integers(0, 8, n) if field.op == "arg" else rng.uniform(0.5, 9, n)
            rows[:, start + i] = draw if field.name != "nonfinite" else 0
        gone = rng.random(n) < 0.2
        rows[gone, start : start + len(REDUCTIONS[accumulator.reduction].fields)] = np.nan
    return rows.astype(np.float32)


def _block(rows):
    steps = np.arange(len(rows))
    return RecordBatch(TABLE, steps, 1000.0 + steps, rows)


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("blocks.3.attn.proj", "blocks.3"), ("transformer.h.11", "transformer.h.11"), ("tokens", "tokens"),
        ("model.embed_tokens", "model"), ("", ""), ("layers.0.experts.7.up", "layers.0"),
    ],
)  # fmt: skip
def test_a_block_is_what_is_numbered_first(layer, block):
    assert group_of(layer, "block") == block
    assert group_of(layer, "run") == "" and group_of(layer, "layer") == layer


@given(st.integers(0, 10_000), st.sampled_from(["block", "run"]))
def test_groups_are_merged_by_the_law(seed, cardinality):
    """Against MergeLaw on the cells of each group, one record at a time."""
    rows = _rows(seed)
    group = Coarse(cardinality, SeriesCap())._group
    merged = Coarsening(TABLE, group)(_block(rows))
    for accumulator, start in zip(merged.layout.accumulators, merged.layout.starts, strict=True):
        mine = [c for c in TABLE.accumulators if group(c) == accumulator]
        one = RecordLayout.build(mine[:1])
        width = one.width
        for row, out in zip(rows, merged.rows, strict=True):
            parts = np.stack([row[TABLE.start(c) : TABLE.start(c) + width] for c in mine])
            np.testing.assert_allclose(out[start : start + width], one.operators.merge(parts), rtol=1e-6)


def test_a_run_level_signal_is_what_it_was():
    rows = _rows(1)
    merged = Coarsening(TABLE, Coarse("run", SeriesCap())._group)(_block(rows))
    for key in (SeriesKey("gradient_norm"), SeriesKey("loss"), SeriesKey("logged_value", "accuracy")):
        fine, coarse = TABLE.keys.index(key), merged.layout.keys.index(key)
        np.testing.assert_allclose(merged.values[:, coarse], _block(rows).values[:, fine], rtol=1e-5)


def _shown(cardinality, worst=2, firing=(), violations=None, limit=10_000):
    cap = SeriesCap(limit)
    coarse = Coarse(cardinality, cap, worst) if cardinality != "layer" else None
    fine = Latest(SeriesCap(10**9) if coarse else cap)
    block = _block(_rows(2, 20))
    for reader in (fine, coarse):
        if reader is not None:
            reader.observe(block, 0.0)
    derived = {SeriesKey("attention_logit_bound", layer): float(i) for i, layer in enumerate(LAYERS)}
    return fine, snapshot(
        META, fine, 0.0, state="running", derived=derived, firing=firing, violations=violations or {}, coarse=coarse
    )


@pytest.mark.parametrize("cardinality", ["run", "block"])
def test_the_worst_layers_stand_beside_their_groups(cardinality):
    fine, s = _shown(cardinality)
    shown = dict(zip(s.keys, s.window, strict=True))
    peaks = {k.layer: v for k, v in zip(fine.keys, fine.window(0.0), strict=True) if k.signal == "activation_abs_max"}
    worst = sorted(peaks, key=peaks.__getitem__)[-2:]
    groups = {group_of(layer, cardinality) for layer in LAYERS}
    assert {k.layer for k in shown if k.signal == "activation_abs_max"} == groups | set(worst)
    assert max(v for k, v in shown.items() if k.signal == "activation_abs_max" and k.layer in groups) == peaks[worst[1]]
    bounds = {k.layer: v for k, v in s.derived}
    assert bounds[group_of(LAYERS[-1], cardinality)] == 7.0 and bounds[LAYERS[-1]] == 7.0
    assert len(s.keys) < len(_shown("layer")[1].keys)


def test_alerts_are_as_loud_at_every_level():
    firing = [("NonFinite", "critical", layer) for layer in LAYERS]
    counts = {("NonFinite", layer): i + 1 for i, layer in enumerate(LAYERS)}
    for cardinality in ("run", "block", "layer"):
        _, s = _shown(cardinality, firing=firing, violations=counts)
        groups = {group_of(layer, cardinality) for layer in LAYERS}
        assert {layer for _, _, layer in s.firing} >= groups | set(LAYERS[:2])
        assert sum(n for _, layer, n in s.violations if layer in groups) == sum(counts.values())
        assert ("NonFinite", LAYERS[0], 1) in s.violations


def test_a_cap_leaves_out_the_layers_of_rare_signals_first():
    deep = Accumulator("residual", "blocks.0", "tokens")
    layout = RecordLayout.build(
        (deep, Accumulator("activation", "blocks.0", "moments"), Accumulator("loss", "", "mean"))
    )
    readings = Latest(SeriesCap(8))  # half of a small cap is kept for alerts
    readings.observe(RecordBatch(layout, np.array([0]), np.array([0.0]), np.ones((1, layout.width), np.float32)), 0.0)
    kept = {key.signal for key in readings.keys}
    assert "loss" in kept and "token_similarity" not in kept and readings.cap.dropped > 0
