"""Tests of rules: run the engine over synthetic series or a recorded run, and compare its alerts with those expected.

rules: mine.yaml                          # optional, beside this file; the catalogue otherwise
tests:
  - name: the stable rank of a block falls
    input_series:                         # one value per step, in promtool's notation
      - series: stable_rank{layer="blocks.0"}
        values: 40x50 1.5x9               # 51 times 40, ten times 1.5; also a+bxn, a-bxn, _ and NaN (not measured)
    only: [RankFalls]                     # optional: the rules that this test is about
    alerts:                               # exactly these must fire; an empty list: none may
      - rule: RankFalls
        severity: warning                 # the highest that is reached
        layer: blocks.0
        onset: 51                         # a step, or [first, last]
        step: 53
  - name: last night's run
    run: runs/night                       # a run folder, or another trainer's log
    alerts: [{rule: LossSpike}]
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stabwatch.alerts import RULES, Engine, Rule
from stabwatch.alerts.incidents import AlertSpan, alert_spans
from stabwatch.alerts.rule import SEVERITIES
from stabwatch.alerts.user_rules import load_rules
from stabwatch.alerts.yaml_lines import Entry, read
from stabwatch.analysis.replay import replay_run
from stabwatch.analysis.sources import open_sources
from stabwatch.runlog import Accumulator, RecordBatch, RecordLayout, SeriesKey
from stabwatch.runlog.schema import Series
from stabwatch.signals import CATALOGUE

MOST_STEPS = 1_000_000
_SERIES = re.compile(r'\s*([a-z_0-9]+)\s*(?:\{\s*layer\s*=\s*"([^"]*)"\s*\})?\s*')
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_PART = re.compile(rf"(_|[+-]?(?:nan|inf|{_NUMBER}))([+-]{_NUMBER})?(?:x(\d+))?", re.IGNORECASE)
_WHERE = ("rule", "severity", "layer", "signal", "onset", "step")


@dataclass(frozen=True)
class Expected:
    """An expected alert; without a layer, alerts of any number of layers.

    Fields without a value match anything. onset, step: first and last step that match.
    """

    rule: str
    severity: str | None = None
    layer: str | None = None
    signal: str | None = None
    onset: tuple[int, int] | None = None
    step: tuple[int, int] | None = None

    def fits(self, found: AlertSpan) -> bool:
        """Whether an alert matches."""
        fired = min(found.fired.values())
        return (
            found.rule == self.rule
            and self.severity in (None, found.severity)
            and self.layer in (None, found.layer)
            and self.signal in (None, found.signal)
            and _inside(found.onset, self.onset)
            and _inside(fired, self.step)
        )

    def __str__(self) -> str:
        parts = [self.severity or "", self.rule, f"in {self.layer}" if self.layer else ""]
        parts += [f"of {self.signal}" if self.signal else ""]
        for name, span in (("onset", self.onset), ("step", self.step)):
            if span is not None:
                parts.append(f"{name} {span[0]}" if span[0] == span[1] else f"{name} {span[0]} to {span[1]}")
        return " ".join(p for p in parts if p)


@dataclass(frozen=True)
class Outcome:
    """Result of one test. missing: expected alerts that did not fire. extra: alerts that fired unexpectedly."""

    path: Path
    line: int
    name: str
    fired: int
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is missing or extra."""
        return not self.missing and not self.extra


def run_tests(path: str | Path) -> list[Outcome]:
    """Run the tests of a file. Raises RuleError with the line of a mistake in the file, and RunLogError."""
    top = read(Path(path), "the file has `tests:`, a list, and optionally `rules:`")
    if top is None:
        return []
    top.only(("rules", "tests"))
    named = top.values.get("rules")
    rules = load_rules(top.path.parent / str(named)) if named else RULES
    return [_outcome(test, rules) for test in top.children("tests", "a test has a name, series and alerts")]


def _outcome(test: Entry, rules: Sequence[Rule]) -> Outcome:
    test.only(("name", "input_series", "run", "only", "alerts"))
    if ("input_series" in test.values) == ("run" in test.values):
        raise test.fail("A test must have either `input_series` or `run`.")
    if "alerts" not in test.values:
        raise test.fail("A test must list the `alerts` that fire; `alerts: []` if none may.")
    expected = [_expected(e, rules) for e in test.children("alerts", "an alert has a rule")]
    looked_at = _only(test, rules)
    judged = _of_run(test, rules) if "run" in test.values else _of_series(test, rules)
    found = [s for s in judged if s.rule in looked_at]
    left, missing = found, []
    for one in expected:
        matches = [s for s in left if one.fits(s)]
        if not matches:
            missing.append(str(one))
        left = [s for s in left if s not in (matches if one.layer is None else matches[:1])]
    name = str(test.values.get("name", f"line {test.line}"))
    return Outcome(test.path, test.line, name, len(found), tuple(missing), tuple(_said(s) for s in left))


def _only(test: Entry, rules: Sequence[Rule]) -> set[str]:
    known = {r.name for r in rules}
    named = test.values.get("only")
    chosen = known if named is None else {str(n) for n in (named if isinstance(named, list) else [named])}
    if not chosen <= known:
        raise test.fail(f"No rule is called `{min(chosen - known)}`.", "only")
    return chosen


def _expected(entry: Entry, rules: Sequence[Rule]) -> Expected:
    entry.only(_WHERE)
    rule = str(entry.values.get("rule", "")).removeprefix("Stabwatch")
    if rule not in {r.name for r in rules}:
        raise entry.fail(f"No rule is called `{rule}`.", "rule")
    severity = entry.values.get("severity")
    if severity is not None and severity not in SEVERITIES:
        raise entry.fail(f"`severity` must be one of {', '.join(SEVERITIES)}, not {severity!r}.", "severity")
    texts = {k: str(entry.values[k]) for k in ("severity", "layer", "signal") if k in entry.values}
    return Expected(rule, onset=_span(entry, "onset"), step=_span(entry, "step"), **texts)


def _span(entry: Entry, key: str) -> tuple[int, int] | None:
    value = entry.values.get(key)
    if value is None:
        return None
    ends = value if isinstance(value, list) else [value, value]
    if len(ends) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) for n in ends):
        raise entry.fail(f"`{key}` must be a step or [first, last], not {value!r}.", key)
    return ends[0], ends[1]


def _of_run(test: Entry, rules: Sequence[Rule]) -> list[AlertSpan]:
    found = open_sources([test.path.parent / str(test.values["run"])])
    if len(found) != 1:
        raise test.fail(f"`run` must name one run, and there are {len(found)}.", "run")
    return alert_spans(replay_run(found[0], rules).alerts)


def _of_series(test: Entry, rules: Sequence[Rule]) -> list[AlertSpan]:
    series = dict(_series(s) for s in test.children("input_series", "a series has a name and values"))
    length = max(map(len, series.values()), default=0)
    engine = Engine(rules)
    if length:
        rows = np.full((length, 2 * len(series)), np.nan, np.float32)
        for i, values in enumerate(series.values()):
            rows[: len(values), 2 * i + 1] = values
            rows[: len(values), 2 * i] = np.where(np.isnan(values), np.nan, 1.0)
        steps = np.arange(length)
        engine.observe(RecordBatch(_table(list(series)), steps, steps.astype(float), rows))
    return alert_spans(engine.history)


def _table(keys: Sequence[SeriesKey]) -> RecordLayout:
    """A record layout with one field per series, after its count."""
    accumulators = tuple(Accumulator("given", str(key), "host") for key in keys)
    series = tuple(Series(key, "same", (2 * i + 1,)) for i, key in enumerate(keys))
    return RecordLayout(accumulators, ((("count", "sum"), ("last", "max")),) * len(accumulators), series)


def _series(entry: Entry) -> tuple[SeriesKey, list[float]]:
    entry.only(("series", "values"))
    match = _SERIES.fullmatch(str(entry.values.get("series", "")))
    if match is None:
        raise entry.fail('`series` must be a signal, or signal{layer="..."}.', "series")
    signal = match[1].removeprefix("stabwatch_")
    if signal not in CATALOGUE:
        raise entry.fail(f"No signal is called `{signal}`; `stabwatch signals` lists them.", "series")
    values = list(_values(entry))
    if len(values) > MOST_STEPS:
        raise entry.fail(f"A series may have at most {MOST_STEPS:,} steps.", "values")
    return SeriesKey(signal, match[2] or ""), values


def _values(entry: Entry) -> Iterator[float]:
    """Values from promtool's notation: `1 2 _ 3+1x4 NaNx2`."""
    left = MOST_STEPS + 1
    for word in str(entry.values.get("values", "")).split():
        match = _PART.fullmatch(word)
        if match is None:
            raise entry.fail(f"`{word}` is not a value. Use a, axn, a+bxn, a-bxn, _ or _xn.", "values")
        start = math.nan if match[1] == "_" else float(match[1])
        times = int(match[3] or 0)
        count = min(times if match[1] == "_" and match[3] else times + 1, left)
        left -= count
        for i in range(count):
            yield start + i * float(match[2] or 0)


def _inside(step: int, span: tuple[int, int] | None) -> bool:
    return span is None or span[0] <= step <= span[1]


def _said(found: AlertSpan) -> str:
    where = f" in {found.layer}" if found.layer else ""
    of: Any = f" of {found.signal}" if found.signal else ""
    return f"{found.severity} {found.rule}{where}{of} onset {found.onset} step {min(found.fired.values())}"
