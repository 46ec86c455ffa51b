"""The contract of every registered signal, and a test that none is left out."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import stabwatch.signals
from stabwatch.runlog import Accumulator, RecordLayout, host_accumulator
from stabwatch.signals import CATALOGUE, Catalogue, Signal
from stabwatch.signals.declaration import TAPS
from stabwatch.signals.formulas import FORMULAS
from stabwatch.signals.reductions import REDUCTIONS

GOLDEN = Path(__file__).parent / "metric_names.txt"
NOT_FAMILIES = {"catalogue", "declaration", "formulas", "reductions"}
UNIT_SUFFIX = {"seconds": "_seconds", "bytes": "_bytes", "ratio": "_ratio"}

every_signal = pytest.mark.parametrize("signal", CATALOGUE, ids=lambda s: s.name)


@every_signal
def test_the_name_is_a_prometheus_name_with_its_unit(signal: Signal) -> None:
    metric = signal.metric.replace("<name>", "name")
    assert re.fullmatch(r"stabwatch_[a-z][a-z0-9]*(_[a-z0-9]+)*", metric)
    base = signal.name.removesuffix("_total")
    assert (signal.kind == "counter") == signal.name.endswith("_total")
    for unit, suffix in UNIT_SUFFIX.items():
        assert (signal.unit == unit) == base.endswith(suffix), f"unit {signal.unit!r} and the name do not agree"
    assert not base.endswith(("_count", "_sum", "_bucket", "_info", "_created")), "kept for Prometheus's own types"
    assert not re.search(r"_(ms|milliseconds|us|kb|mb|gb|percent|gauge|counter)(_|$)", signal.name), "base units only"


@every_signal
def test_the_help_is_one_sentence(signal: Signal) -> None:
    assert signal.help == signal.help.strip()
    assert signal.help[0].isupper() and signal.help.endswith(".") and not signal.help.endswith("..")
    assert "\n" not in signal.help and "  " not in signal.help
    assert not re.search(r"\. [A-Z]", signal.help), "one sentence"
    assert 10 < len(signal.help) <= 140


@every_signal
def test_its_parts_exist(signal: Signal) -> None:
    assert signal.tap in TAPS
    assert signal.fields and set(signal.fields) <= {f.name for f in REDUCTIONS[signal.reduction].fields}
    assert signal.formula in FORMULAS
    assert signal.scope in ("run", "layer") and signal.tier in ("always", "sampled", "deep")
    assert signal.worst in ("max", "min")


@every_signal
def test_a_counter_sums_a_sum(signal: Signal) -> None:
    if signal.kind == "counter":
        field = REDUCTIONS[signal.reduction].fields[REDUCTIONS[signal.reduction].index(signal.fields[0])]
        assert (signal.formula, field.op, len(signal.fields)) == ("total", "sum", 1)


@every_signal
def test_it_becomes_a_series_and_its_value_is_a_number(signal: Signal) -> None:
    accumulator = (
        host_accumulator(signal.name) if signal.tap == "host" else Accumulator(signal.tap, "blocks.0", signal.reduction)
    )
    layout = RecordLayout.build([accumulator])
    (index,) = (i for i, key in enumerate(layout.keys) if key.signal == signal.name)
    assert layout.keys[index].layer == ("" if signal.scope == "run" else "blocks.0")
    row = np.array([0.0 if name == "nonfinite" else 2.0 for fields in layout.fields for name, _ in fields])
    assert np.isfinite(layout.values(row)[index])
    assert np.isnan(layout.values(np.full(layout.width, np.nan))[index])


def test_every_measured_thing_has_a_counter_of_what_was_not_finite() -> None:
    """A NaN never silences anything: where values are read, non-finite ones are counted."""
    for reduction in REDUCTIONS.values():
        if "nonfinite" in [f.name for f in reduction.fields]:
            taps = {s.tap for s in CATALOGUE if s.reduction == reduction.name} - {"logged"}
            for tap in taps:
                counters = [s for s in CATALOGUE.at(tap, reduction.name) if s.fields == ("nonfinite",)]
                exact = reduction.name == "attention_exact"  # its bracket counts, at every step
                assert counters or exact, f"{reduction.name} at {tap} counts non-finite values and no signal shows it"


def test_every_family_file_is_registered() -> None:
    families = {m.name for m in pkgutil.iter_modules(stabwatch.signals.__path__)} - NOT_FAMILIES
    assert families, "the walk found nothing"
    for name in families:
        for signal in importlib.import_module(f"stabwatch.signals.{name}").SIGNALS:
            assert signal.name in CATALOGUE and CATALOGUE[signal.name] is signal, f"{name}.py is not in catalogue.py"


def test_every_reduction_and_tap_is_used() -> None:
    between_ranks = {"replica_values", "checksum"}  # what is compared before it is logged
    assert {s.reduction for s in CATALOGUE} | between_ranks == set(REDUCTIONS)
    assert {s.tap for s in CATALOGUE} == set(TAPS)


def test_metric_names_are_frozen() -> None:
    now = [f"{s.metric} {s.kind} {s.scope} {s.unit}" for s in CATALOGUE]
    assert now == GOLDEN.read_text().splitlines(), (
        "The metrics changed, and dashboards and rules of users hang on them. If it is on purpose, put the new list "
        f"into {GOLDEN.name} and a line into CHANGELOG.md. The list now:\n" + "\n".join(now)
    )


def test_two_signals_of_one_name_are_refused() -> None:
    catalogue = Catalogue()
    catalogue.register(CATALOGUE["loss"])
    with pytest.raises(ValueError, match="`loss` is registered already"):
        catalogue.register(CATALOGUE["loss"])
    assert len(catalogue) == 1


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="No signal is called `grad_nrom`. Known signals: loss, "):
        CATALOGUE["grad_nrom"]
    assert "grad_nrom" not in CATALOGUE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tap": "weights"}, "no tap is called 'weights'"),
        ({"help": "Loss"}, "full stop"),
        ({"fields": ("sumsq",)}, "not all in"),
        ({"formula": "mode"}, "no formula is called"),
        ({"formula": "rms", "fields": ("sum",)}, "reads"),
        ({"kind": "counter"}, "counters end with _total"),
        ({"name": "loss_total"}, "counters end with _total"),
    ],
)
def test_a_malformed_signal_is_refused(change: dict, message: str) -> None:
    good = dict(
        name="x", help="A number.", unit="1", tap="loss", reduction="mean", fields=("sum", "count"), formula="mean"
    )
    Signal(**good)
    with pytest.raises(AssertionError, match=message):
        Signal(**{**good, **change})
