"""Records in blocks of any size give what they give one by one: transitions, gauges, contexts and memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from stabwatch.alerts import RULES, Engine, Rule
from stabwatch.alerts.rule import Condition, Threshold
from stabwatch.runlog import Event, RecordBatch, RecordLayout
from stabwatch.signals import CATALOGUE
from tests.alerts.scenarios import CELLS, LAYERED, accumulator, fields
from tests.sampling import sample

LEVELS = {
    "loss": 3.0, "gradient_norm": 1.0, "logits": 5.0, "learning_rate": 1e-3, "step_seconds": 0.1,
    "busy": 0.15, "rank_loss": 2.1, "loss_scale": 4096.0, "radius": 0.1, "lower": 20.0, "exact": 21.0,
    "activation": 30.0, "update": 3e-3, "weight": 1.0, "flow": 0.1, "tokens": 0.5, "adam": 0.8,
    "epsilon": 0.3, "collapse": 0.1, "router": 1.5, "dead": 0.3, "saturated": 0.2, "entropy": 1.3, "growth": 0.4,
    "drift": 0.3, "dropped": 0.1, "zeros": 0.2, "exponents": 0.1, "spectrum": 3.0,
}  # fmt: skip
"""Levels in a healthy run; other kinds are counters and differences, which are 0 there."""
Item = RecordBatch | Event


def one_site(kind: str) -> bool:
    """Whether a kind is measured at one site only: a signal of the run reads several of its fields."""
    cell = accumulator(f"{kind} a")
    return any(
        s.scope == "run" and (s.tap, s.reduction) == (cell.tap, cell.reduction) and len(s.fields) > 1 for s in CATALOGUE
    )


def curve(rng: np.random.Generator, kind: str, n: int) -> np.ndarray:
    """n values of one series: its level with noise, some faults, and points that were not measured."""
    level = LEVELS.get(kind, 0.0)
    values = np.full(n, level) if not level else level * np.exp(rng.choice([0.0, 0.02, 0.3]) * rng.normal(size=n))
    if kind == "loss":
        values += rng.choice([0.0, 2.0]) * np.exp(-np.arange(n) / 60) - rng.choice([0.0, 0.0, 3.0, 4.0])
    for _ in range(rng.integers(0, 4)):
        start, length = int(rng.integers(0, n)), int(rng.choice([1, 2, 4, 12, 40, 120]))
        _fault(rng, values[start : start + length], kind)
    values[rng.random(n) < rng.choice([0.0, 0.0, 0.3])] = np.nan
    if rng.random() < 0.4:
        values[np.arange(n) % int(rng.choice([2, 4, 8])) != 0] = np.nan
    return values


def _fault(rng: np.random.Generator, part: np.ndarray, kind: str) -> None:
    choice = rng.integers(0, 6)
    if choice == 0:
        with np.errstate(invalid="ignore"):  # zero times what an earlier fault made infinite
            part *= rng.choice([0.0, 0.01, 1.5, 3.0, 30.0, 1e4])
    elif choice == 1:
        part += rng.choice([-2.0, -0.3, 0.3, 1.0, 5.0])
    elif choice == 2:
        part *= np.geomspace(1, rng.choice([0.01, 2.0, 10.0, 300.0]), len(part))
    elif choice == 3:
        part[:] = rng.choice([np.inf, -np.inf]) if rng.random() < 0.5 else 1e6
    elif choice == 4:
        part[:] = np.nan
    else:
        part[:] = rng.choice([0.0, 0.5, 1.0, 3.0])


def records(rng: np.random.Generator, names: list[str], first: int, n: int) -> RecordBatch:
    """n records of some series. Steps ascend, with gaps in some runs."""
    layout = RecordLayout.build(dict.fromkeys(accumulator(name) for name in names))
    rows = np.full((n, layout.width), np.nan, np.float32)
    for name in names:
        cell, kind = accumulator(name), name.partition(" ")[0]
        columns = {f: i for i, (f, _) in enumerate(layout.fields[layout.accumulators.index(cell)], layout.start(cell))}
        values = curve(rng, kind, n)
        seen = np.flatnonzero(~np.isnan(values))
        rows[np.ix_(seen, list(columns.values()))] = 0.0
        for field, number in {"count": 1.0, **fields(name, values[seen])}.items():
            rows[seen, columns[field]] = number
        if kind in ("loss", "gradient_norm") and rng.random() < 0.3:
            rows[rng.integers(0, n, 3), columns["sum" if kind == "loss" else "sumsq"]] = rng.choice([np.nan, np.inf])
    steps = first + np.cumsum(rng.integers(1, rng.choice([2, 2, 5]), n))
    if rng.random() < 0.3:
        back = int(rng.integers(1, n))
        steps[back:] -= steps[back] - int(rng.integers(0, steps[back]))
    return RecordBatch(layout, steps, 1e9 + steps * 0.25 + rng.random(n) * 0.1, rows)


def story(seed: int, n: int = 300) -> list[Item]:
    """Records and events of a run: it resumes from earlier steps, its layout changes, changes are announced."""
    rng = np.random.default_rng(seed)
    layers = [f"blocks.{i}" for i in range(rng.integers(1, 4))]
    run, items, step = [name for name in CELLS if rng.random() < 0.8], [], 0
    layered = [kind for kind in LAYERED if rng.random() < 0.6]
    names = [*run, *(f"{kind} {layer}" for kind in layered for layer in (layers[:1] if one_site(kind) else layers))]
    changes = sorted(rng.integers(0, 3 * n, rng.integers(0, 3)).tolist())
    items += [Event("change", 1e9, change, {"what": "data"}) for change in changes]
    for _ in range(rng.integers(1, 4)):
        if rng.random() < 0.5:
            names = [name for name in names if rng.random() < 0.9] + (["lower late"] if rng.random() < 0.5 else [])
            names = [str(name) for name in rng.permutation(names)]
        items.append(records(rng, names, step, int(rng.integers(n // 3, n))))
        step = int(items[-1].steps[-1]) if rng.random() < 0.5 else int(rng.integers(0, items[-1].steps[-1] + 1))
        if rng.random() < 0.5:
            items.append(Event("guard", float(items[-1].times[-1]), step, {"action": "skip"}))
        if rng.random() < 0.3:
            time = float(records_of(items)[-1].times[-1])
            items += [Event("end", time, step, {"reason": "killed"}), Event("start", time + 1, step)]
    return items


def records_of(items: list[Item]) -> list[RecordBatch]:
    """The batches among some items."""
    return [item for item in items if isinstance(item, RecordBatch)]


def parts(batch: RecordBatch, cuts: list[int]) -> Iterator[RecordBatch]:
    """A batch, cut before some of its records."""
    for start, stop in pairwise(sorted({0, len(batch), *cuts})):
        rows = slice(start, stop)
        yield replace(batch, steps=batch.steps[rows], times=batch.times[rows], rows=batch.rows[rows])


def observed(items: list[Item], rng: np.random.Generator | None = None, size: int = 0) -> Engine:
    """An engine that has seen everything, in batches of some size, or cut anywhere."""
    engine = Engine([*RULES, *OWN])
    for item in items:
        if isinstance(item, Event):
            engine.tick(item.time)
            engine.observe_event(item)
            continue
        n = len(item)
        cuts = rng.integers(0, n, rng.integers(0, 9)).tolist() if rng else list(range(0, n, size))
        for part in parts(item, cuts):
            engine.observe(part)
    return engine


def state(engine: Engine) -> dict[str, str]:
    """What users and the diagnosis read of an engine, as text: NaN equals NaN, and the order counts."""
    memory = {name: value for name, value in vars(engine.memory).items() if not name.startswith("_")}
    return {
        "history": "\n".join(map(repr, engine.history)),
        "contexts": "\n".join(repr(alert.context) for alert in engine.history),
        "active": repr(engine.active),
        "derived": repr(engine.derived),
        "memory": repr(memory),
        "clock": repr((engine.first_step, engine.last_step, engine.patience)),
    }


def differences(seed: int) -> tuple[int, list[str]]:
    """Number of transitions of a run, and what is not equal in some way of cutting it."""
    items, rng = story(seed), np.random.default_rng(seed)
    truth = state(one_by_one := observed(items, size=1))
    found = []
    for engine in (observed(items, size=10**6), observed(items, rng), observed(items, size=int(rng.integers(16, 60)))):
        now = state(engine)
        found += [f"{what} of {seed}" for what in truth if now[what] != truth[what]]
    return len(one_by_one.history), found


OWN = (
    Rule(
        name="Own", title="Own", family="signal:weight_rms", summary="", description="", remedy=(), source="",
        thresholds=(Threshold(severity="info", when=(Condition("weight_rms", above=1.2),), for_points=2),),
        abnormal=(Condition("weight_rms", above=1.1),), muted=("*.1",),
    ),
)  # fmt: skip


@pytest.mark.parametrize("seed", sample(range(12), every=3))
def test_any_cut_of_the_records_gives_what_one_by_one_gives(seed: int) -> None:
    assert differences(seed)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [range(start, start + 25) for start in range(100, 700, 25)])
def test_any_cut_of_many_runs(seeds: range) -> None:
    results = [differences(seed) for seed in seeds]
    assert [what for _, found in results for what in found] == []
    assert sum(transitions for transitions, _ in results) > 500
