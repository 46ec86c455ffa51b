"""Last values, windows and counters, folded from blocks."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.exporters.latest import Latest, SeriesCap
from stabwatch.runlog import Accumulator, RecordBatch, RecordLayout, SeriesKey, host_accumulator

TABLE = RecordLayout.build(
    [
        Accumulator("loss", "", "mean"),
        Accumulator("activation", "a", "moments"),
        Accumulator("activation", "b", "moments"),
        Accumulator("gradient", "a", "moments"),
        Accumulator("attention", "a", "attention_bracket"),
    ]
)
LOSS = SeriesKey("loss")


def block(
    values: list[dict[str, tuple[float, ...]]], start: float = 1000.0, step: int = 0, dt: float = 1.0
) -> RecordBatch:
    """One record per dict; keys are '<tap> <site>', values the fields of the cell."""
    rows = np.full((len(values), TABLE.width), np.nan, np.float32)
    for row, accumulators in zip(rows, values, strict=True):
        for accumulator in TABLE.accumulators:
            fields = accumulators.get(f"{accumulator.tap} {accumulator.site}".strip())
            if fields is not None:
                row[TABLE.start(accumulator) : TABLE.start(accumulator) + len(fields)] = fields
    n = len(values)
    return RecordBatch(TABLE, step + np.arange(n), start + dt * np.arange(n, dtype=np.float64), rows)


def losses(*values: float, start: float = 1000.0) -> RecordBatch:
    return block([{"loss": (1, v, 0 if np.isfinite(v) else 1)} for v in values], start)


def readings(limit: int = 20_000) -> Latest:
    return Latest(SeriesCap(limit))


def at(r: Latest, what: np.ndarray, key: SeriesKey) -> float:
    return float(what[r.keys.index(key)])


def test_a_spike_stays_in_the_window_for_a_minute_and_no_read_resets_it():
    r = readings()
    r.observe(losses(2.0, 900.0, 2.5), arrived=50.0)
    for now in (50.0, 50.0, 100.0, 105.0):
        assert at(r, r.window(now), LOSS) == 900.0
    assert at(r, r.last, LOSS) == 2.5
    assert at(r, r.window(50.0 + 70.0), LOSS) == 2.5


def test_the_window_follows_the_clock_of_the_training_process():
    r = readings()
    r.observe(losses(900.0, start=1000.0), arrived=0.0)
    r.observe(losses(2.0, start=1059.0), arrived=7000.0)  # a file system that was away for two hours
    assert at(r, r.window(7000.0), LOSS) == 900.0
    r.observe(losses(2.0, start=1100.0), arrived=7001.0)
    assert at(r, r.window(7001.0), LOSS) == 2.0


def test_the_low_end_of_a_window_is_kept_where_low_is_bad():
    r = readings()
    moments = lambda rms: {"gradient a": (100.0, 100.0 * rms**2, 0.0, rms)}  # noqa: E731
    r.observe(block([moments(1.0), moments(1e-6), moments(0.5)]), arrived=0.0)
    assert at(r, r.window(0.0), SeriesKey("gradient_rms", "a")) == pytest.approx(1e-6)
    assert at(r, r.window(0.0), SeriesKey("gradient_abs_max", "a")) == 1.0
    assert at(r, r.worst, SeriesKey("gradient_rms", "a")) == pytest.approx(1e-6)
    assert r.worst_step[r.keys.index(SeriesKey("gradient_rms", "a"))] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_counted_and_blanks_the_gauge(bad):
    r = readings()
    r.observe(losses(2.0, bad), arrived=0.0)
    assert np.isnan(at(r, r.last, LOSS))
    assert at(r, r.window(0.0), LOSS) == 2.0
    assert at(r, r.nonfinite, LOSS) == 1
    assert at(r, r.totals, SeriesKey("loss_nonfinite_total")) == 1


def test_not_measured_is_not_nonfinite():
    r = readings()
    r.observe(losses(2.0), arrived=0.0)
    r.observe(block([{}, {"activation a": (4, 16.0, 0, 3.0)}]), arrived=0.0)
    assert at(r, r.last, LOSS) == 2.0
    assert r.nonfinite.sum() == 0
    assert at(r, r.last, SeriesKey("output_rms", "a")) == 2.0
    assert np.isnan(at(r, r.last, SeriesKey("output_rms", "b")))


def test_counters_accumulate_over_blocks():
    r = readings()
    for count in (3.0, 0.0, 4.0):
        r.observe(block([{"activation a": (10, 1.0, count, 1.0)}] * 2), arrived=0.0)
    assert at(r, r.totals, SeriesKey("activation_nonfinite_total", "a")) == 14
    assert at(r, r.totals, SeriesKey("activation_nonfinite_total", "b")) == 0


def test_one_block_or_many_come_to_the_same():
    rng = np.random.default_rng(0)
    records = [
        {"loss": (1, float(rng.normal()), 0), **({"activation a": (8, float(rng.random()), 1, 1.0)} if i % 3 else {})}
        for i in range(200)
    ]
    whole, parts = readings(), readings()
    whole.observe(block(records), arrived=9.0)
    for i in range(0, 200, 7):
        parts.observe(block(records[i : i + 7], start=1000.0 + i, step=i), arrived=9.0)
    for name in ("last", "worst", "worst_step", "totals", "nonfinite"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), err_msg=name)
    np.testing.assert_array_equal(whole.window(9.0), parts.window(9.0))


def test_a_new_layout_goes_on_where_the_old_one_stopped():
    r = readings()
    r.observe(losses(2.0), arrived=0.0)
    wider = RecordLayout.build([Accumulator("activation", "z", "moments"), *TABLE.accumulators])
    rows = np.full((1, wider.width), np.nan, np.float32)
    rows[0, :4] = (1, 9.0, 0, 3.0)
    r.observe(RecordBatch(wider, np.array([1]), np.array([1001.0]), rows), arrived=0.0)
    assert at(r, r.last, SeriesKey("output_rms", "z")) == 3.0
    assert at(r, r.window(0.0), LOSS) == 2.0
    assert r.layers == ["a", "b", "z"]


def test_the_cap_keeps_what_concerns_the_whole_run():
    r = readings(limit=12)
    r.observe(block([{"loss": (1, 2.0, 0), "activation a": (1, 1.0, 0, 1.0)}]), arrived=0.0)
    assert LOSS in r.keys
    assert r.cap.used <= 12
    assert r.cap.dropped > 0
    before = r.cap.dropped
    r.observe(losses(2.0), arrived=0.0)
    assert r.cap.dropped == before


def test_records_without_anything_and_empty_blocks():
    r = readings()
    r.observe(block([]), arrived=0.0)
    r.observe(block([{}]), arrived=0.0)
    assert r.records == 1
    assert np.isnan(r.window(0.0)).all()


def test_a_signal_fits_with_all_its_layers_or_is_named():
    r = readings(limit=40)
    layout = RecordLayout.build([Accumulator("activation", f"h.{i}", "moments") for i in range(8)])
    rows = np.ones((1, layout.width), np.float32)
    r.observe(RecordBatch(layout, np.array([3]), np.array([1.0]), rows), arrived=0.0)
    layers = {name: sum(key.signal == name for key in r.keys) for name in {key.signal for key in layout.keys}}
    assert set(layers.values()) == {0, 8} and layers["output_rms"] == 8
    assert set(r.cap.dropped_signals) == {name for name, count in layers.items() if not count}
    assert r.cap.used <= 40 and r.last_step.tolist() == [3] * len(r.keys)


def test_signals_of_the_run_that_come_late_fit_too():
    layers = RecordLayout.build([Accumulator("activation", f"h.{i}", "moments") for i in range(40)])
    late = RecordLayout.build([Accumulator("loss", "", "mean"), host_accumulator("learning_rate")])
    r = Latest(SeriesCap(100))
    for step, layout in enumerate((layers, late)):
        block = RecordBatch(layout, np.array([step]), np.array([1.0]), np.ones((1, layout.width), np.float32))
        r.observe(block, arrived=0.0)
    assert {"loss", "learning_rate"} <= {key.signal for key in r.keys} and r.cap.dropped


def test_a_model_of_128_blocks_fits():
    """Ten sites in a block, as many as the deepest measurement has of each."""
    from stabwatch.signals.reductions import REDUCTIONS

    taps = {"activation": ("moments", 6), "gradient": ("moments", 6), "weight": ("moments", 6), "update": ("update", 6)}
    sites = []
    for i in range(128):
        for tap, (reduction, parts) in taps.items():
            sites += [Accumulator(tap, f"h.{i}.{part}", reduction) for part in range(parts)]
        sites += [Accumulator("attention", f"h.{i}.attn", r) for r in REDUCTIONS if r.startswith("attention_")]
    r = Latest(SeriesCap())
    layout = RecordLayout.build(sites)
    rows = np.ones((1, layout.width), np.float32)
    r.observe(RecordBatch(layout, np.array([3]), np.array([1.0]), rows), arrived=0.0)
    assert r.cap.dropped == 0 and r.cap.used > 20_000
