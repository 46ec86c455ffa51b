"""The text of the signals from a template is what prometheus_client writes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from stabwatch.exporters.prometheus import DerivedMetric, RunCollector, Snapshot, derived_families, signal_families
from stabwatch.exporters.signal_text import END, SignalText
from stabwatch.runlog import SeriesKey

DERIVED = (DerivedMetric("loss_trend", "Its 5 % trend."), DerivedMetric("rise", "How much it rose."))
LAYERS = ("blocks.0", "100 %s of it", 'a "quoted\\ name', "two\nlines")
KEYS = (
    SeriesKey("loss"),
    *(SeriesKey(signal, layer) for signal in ("output_rms", "activation_nonfinite_total") for layer in LAYERS),
    SeriesKey("logged", "my/metric"),
)
FORMATS = {
    "text": (generate_latest, parse_text),
    "openmetrics": (openmetrics.generate_latest, parse_openmetrics),
}


def snapshot(last: float, run: str = "50 % run") -> Snapshot:
    n = len(KEYS)
    values = np.linspace(last, last * 3.123456789, n)
    values[2] = np.nan
    derived = ((SeriesKey("loss_trend"), last / 3), *((SeriesKey("rise", layer), last) for layer in LAYERS))
    return Snapshot(run=run, keys=KEYS, last=values, window=values + 1, totals=np.arange(n) * 1.0,
                    nonfinite=np.zeros(n, np.int64), derived=derived)  # fmt: skip


def samples(text: bytes, parse) -> dict:
    return {
        (f.name, f.type, f.documentation, s.name, tuple(sorted(s.labels.items()))): s.value
        for f in parse(text.decode())
        for s in f.samples
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_it_is_what_the_library_writes(kind):
    encoder, parse = FORMATS[kind]
    text = SignalText(DERIVED)
    first = snapshot(1.0)
    appeared = replace(first, last=np.where(np.isnan(first.last), 7.0, first.last))
    gone = replace(first, last=np.full(len(KEYS), np.inf), window=np.full(len(KEYS), np.nan))
    for s in (first, snapshot(1e-9), snapshot(1e9), appeared, gone, snapshot(2.0, run="other")):
        wanted = _registry(s)
        found = text.encode([s], encoder, kind)
        assert samples(found + (END if kind == "openmetrics" else b""), parse) == samples(encoder(wanted), parse)
        assert len(samples(found + (END if kind == "openmetrics" else b""), parse)) >= len(LAYERS)


@pytest.mark.parametrize("kind", FORMATS)
def test_derived_signals_that_come_and_go_are_not_written_anew(kind):
    encoder, parse = FORMATS[kind]
    text, calls = SignalText(DERIVED), []

    def counted(registry):
        calls.append(registry)
        return encoder(registry)

    whole = snapshot(1.0)
    for derived in (whole.derived, whole.derived[:1], whole.derived[1:], (), whole.derived[::-1]):
        s = replace(whole, derived=derived)
        found = text.encode([s], counted, kind)
        assert samples(found + (END if kind == "openmetrics" else b""), parse) == samples(encoder(_registry(s)), parse)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_many_runs_share_the_head_of_a_metric(kind):
    encoder, parse = FORMATS[kind]
    text = SignalText(DERIVED)
    a, b = snapshot(1.0, run="a"), replace(snapshot(2.0, run="b"), keys=KEYS[:-1])
    b = replace(b, **{name: getattr(b, name)[:-1] for name in ("last", "window", "totals", "nonfinite")})
    for runs in ((a, b), (replace(a, last=a.last * 2), b), (b,), (), (b, a)):
        found = text.encode(runs, encoder, kind)
        heads = [line for line in found.decode().splitlines() if line.startswith("# TYPE")]
        assert len(heads) == len(set(heads))
        wanted = {k: v for s in runs for k, v in samples(encoder(_registry(s)), parse).items()}
        assert samples(found + (END if kind == "openmetrics" else b""), parse) == wanted


def _registry(s: Snapshot) -> CollectorRegistry:
    class Signals:
        def collect(self):
            return [*signal_families(s), *derived_families(s, {d.name: d for d in DERIVED})]

        def describe(self):
            return []

    registry = CollectorRegistry()
    registry.register(Signals())
    return registry


def test_a_collector_can_leave_the_signals_to_it():
    with_signals, without = (RunCollector(lambda: snapshot(1.0), DERIVED, signals=signals) for signals in (True, False))
    names = {f.name for f in with_signals.collect()} - {f.name for f in without.collect()}
    families = _registry(snapshot(1.0)).collect()
    assert names == {f.name for f in families}
