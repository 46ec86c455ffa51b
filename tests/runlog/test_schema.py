"""The layout of a record, and what is made of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from stabwatch.runlog import Accumulator, Event, RecordBatch, RecordLayout, SeriesKey, host_accumulator
from stabwatch.signals import CATALOGUE


def test_cells_lie_one_after_the_other(layout: RecordLayout) -> None:
    assert layout.width == sum(len(f) for f in layout.fields) == len(layout.operators.ops)
    assert layout.starts[0] == 0
    for accumulator, start, fields in zip(layout.accumulators, layout.starts, layout.fields, strict=True):
        assert layout.start(accumulator) == start
        assert fields[0] == ("count", "sum")
        assert layout.operators.ops[start : start + len(fields)] == tuple(op for _, op in fields)


def test_a_cell_named_twice_is_one_cell() -> None:
    accumulator = Accumulator("loss", "", "mean")
    assert RecordLayout.build([accumulator, accumulator]).accumulators == (accumulator,)


def test_layer_signals_have_one_series_a_site_and_run_signals_one(layout: RecordLayout) -> None:
    layers = [k.layer for k in layout.keys if k.signal == "layer_gradient_norm"]
    assert layers == ["blocks.0", "blocks.1"]  # in forward order
    assert layout.keys.count(SeriesKey("gradient_norm")) == 1
    assert len(set(layout.keys)) == len(layout.keys)
    assert set(layout.keys) >= {SeriesKey("loss"), SeriesKey("attention_logit_upper", "blocks.0.attn")}


def test_a_norm_over_the_run_is_made_of_all_layers() -> None:
    layout = RecordLayout.build([Accumulator("gradient", f"blocks.{i}", "moments") for i in range(2)])
    rows = np.array([[4, 9.0, 0, 3, 4, 16.0, 0, 4], [4, 9.0, 0, 3, np.nan, np.nan, np.nan, np.nan]])
    values = layout.values(rows)[:, layout.keys.index(SeriesKey("gradient_norm"))]
    assert_array_equal(values, [5.0, 3.0])


def test_host_cells_are_named_after_their_signal() -> None:
    layout = RecordLayout.build([host_accumulator("learning_rate"), host_accumulator("skipped_steps_total")])
    assert layout.keys == (SeriesKey("learning_rate"), SeriesKey("skipped_steps_total"))
    assert_array_equal(layout.values(np.array([1, 0.5, 1, 2.0])), [0.5, 2.0])


def test_values_of_rows_of_any_leading_shape(layout: RecordLayout) -> None:
    rows = np.random.default_rng(0).random((2, 3, layout.width))
    assert_array_equal(layout.values(rows)[1, 2], layout.values(rows[1, 2]))


def test_the_json_of_a_table_gives_the_table_back(layout: RecordLayout) -> None:
    again = RecordLayout.from_json(layout.to_json())
    assert again == layout
    again.check()
    assert json.loads(layout.to_json())["schema"] == 3


def test_a_table_from_a_file_keeps_the_fields_of_the_file(layout: RecordLayout) -> None:
    """A log of another version is read by the layout it was written with, not by today's."""
    data = json.loads(layout.to_json())
    data["accumulators"][0]["fields"].append(["later", "max"])
    again = RecordLayout.from_json(json.dumps(data))
    assert again.width == layout.width + 1 and again.fields[0][-1] == ("later", "max")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["accumulators"].clear(), "at least one field"),
        (lambda d: d["accumulators"][0]["fields"].append(["x", "median"]), "unknown merge operator 'median'"),
        (lambda d: d["series"][0].update(formula="mode"), "unknown formula 'mode'"),
        (lambda d: d["series"][0].update(indices=[10**6]), "names the fields"),
        (lambda d: d["series"][0].update(indices=[]), "names the fields"),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused(layout: RecordLayout, change, message: str) -> None:
    data = json.loads(layout.to_json())
    change(data)
    with pytest.raises(ValueError, match=message):
        RecordLayout.from_json(json.dumps(data)).check()


def test_a_block_has_the_values_of_its_rows(layout: RecordLayout) -> None:
    names = [name for fields in layout.fields for name, _ in fields]
    rows = np.array([[float(name != "nonfinite") for name in names], [np.nan] * layout.width], np.float32)
    block = RecordBatch(layout, np.arange(2), np.arange(2.0), rows)
    assert len(block) == 2 and block.values.shape == (2, len(layout.series))
    assert np.isfinite(block.values[0]).all() and np.isnan(block.values[1]).all()


def test_an_event_survives_its_line() -> None:
    event = Event("note", 12.5, 3, {"text": "é\n\u2028", "list": [1, None]})
    assert "\n" not in event.to_json()
    assert Event.from_json(event.to_json()) == event
    assert Event.from_json('{"kind": "end", "time": 1}') == Event("end", 1.0, None, {})


def test_series_keys_read_well_and_sort() -> None:
    assert str(SeriesKey("loss")) == "loss" and str(SeriesKey("output_rms", "blocks.0")) == "output_rms[blocks.0]"
    assert sorted([SeriesKey("b"), SeriesKey("a", "z"), SeriesKey("a")])[0] == SeriesKey("a")


RARE = (
    "reach", "update_lost", "logit_form", "targets", "token_order", "text_end", "log_ratio", "advantage", "loop_gain",
    "codes", "update", "logsumexp", "certainty", "clip", "host_count", "group", "depth", "router", "load", "capacity",
    "dropped", "replica", "rank_spread",
)  # fmt: skip


def test_the_example_layout_covers_every_reduction_but_the_rare(layout: RecordLayout) -> None:
    """What the tests beside this one write is close to what is really written."""
    missing = {s.reduction for s in CATALOGUE if s.tier != "deep"} - {c.reduction for c in layout.accumulators}
    assert missing <= set(RARE)


def test_the_stored_text_is_what_json_makes_of_it(layout: RecordLayout) -> None:
    odd = RecordLayout.build([Accumulator("activation", 'a"\\\n\u00e9 \U0001f600', "moments"), *layout.accumulators])
    stored = json.loads(odd.to_json())
    assert json.dumps(stored, separators=(",", ":")) == odd.to_json()
    assert stored["accumulators"][0]["site"] == odd.accumulators[0].site
    assert stored["accumulators"][0]["fields"] == [list(field) for field in odd.fields[0]]
    assert [(s["signal"], s["layer"]) for s in stored["series"]] == [(k.signal, k.layer) for k in odd.keys]
    assert RecordLayout.from_json(odd.to_json()) == odd
