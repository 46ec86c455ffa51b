"""From runs to figures: what each detector saw of a run, and when."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.detection.others import GRID, OTHERS, Detector, episodes
from benchmarks.detection.runs import Array, Trained, hurt
from stabwatch.alerts import Engine, diagnose
from stabwatch.alerts.incidents import alert_spans
from stabwatch.runlog import Run

OURS = "stabwatch"
APART = 20
"""Steps: alarms that are closer are one, to a person."""


@dataclass(frozen=True)
class Verdict:
    """One run.

    first: by detector, its first alarm at or after the fault that it does not raise in the twin as well; None: never.
    false: by detector, its alarms on healthy steps: of a healthy run, of any before its fault, of the twin.
    unannounced: ours, had nobody announced what was to change. healthy_steps: how many of those there are.
    cause: what the diagnosis named first.
    """

    run: Trained
    hurt: int | None
    first: dict[str, int | None]
    false: dict[str, int]
    unannounced: int
    healthy_steps: int
    cause: str
    rules: tuple[str, ...]

    @property
    def right(self) -> bool:
        """The first cause named is one that the case accepts."""
        return self.cause in self.run.case.causes

    def lead(self, detector: str) -> int:
        """Steps from the first alarm to the hurt; an alarm that never came, and a hurt that never shows, at the end."""
        end = len(self.run.losses)
        first = self.first[detector]
        return (end if self.hurt is None else self.hurt) - (end if first is None else first)


def calibrated(runs: Sequence[Trained], budget: float) -> dict[str, float]:
    """By other detector, the least threshold with at most `budget` false alarms per 10,000 healthy steps, over the
    usual one; the largest that was tried where none is quiet enough."""
    curves = [
        (_fault(run), run.losses, norms_of(run.log, len(run.losses)), run.twin,
         norms_of(run.twin_log, len(run.twin)) if run.twin_log else run.twin)
        for run in runs
    ]  # fmt: skip
    most = budget / 1e4 * sum(fault + max(len(twin) - fault, 0) for fault, _, _, twin, _ in curves)

    def rings(detect: Detector, by: float) -> int:
        count = 0
        for fault, losses, norms, twin, twin_norms in curves:
            count += sum(s < fault for s in episodes(detect(losses, norms, by), APART))
            count += sum(s >= fault for s in episodes(detect(twin, twin_norms, by), APART))
        return count

    return {name: next((by for by in GRID if rings(detect, by) <= most), GRID[-1]) for name, detect in OTHERS.items()}


def judge(run: Trained, others: Mapping[str, Detector] = OTHERS) -> Verdict:
    """Replay every detector over one run, and over its twin."""
    engine, heard = _received(run.log, run.losses, others)
    twin = _received(run.twin_log, run.twin, others)[1] if run.twin_log else {}
    steps, fault = len(run.losses), _fault(run)
    diagnosis = diagnose(engine)
    false = {name: sum(s < fault for s in _alarms(on)) for name, on in heard.items()}
    of_twin = {name: sum(s >= fault for s in _alarms(twin.get(name, {}))) for name in heard}
    announced = any(event.kind == "change" for event in run.log.events)
    silent = _on(_engine(run.log, announced=False), steps) if announced else heard[OURS]
    return Verdict(
        run=run,
        hurt=hurt(run),
        first={name: _first(on, twin.get(name, {}), fault) for name, on in heard.items()},
        false={name: false[name] + of_twin[name] for name in heard},
        unannounced=sum(s < fault for s in _alarms(silent)) + of_twin[OURS],
        healthy_steps=fault + max(len(run.twin) - fault, 0),
        cause=diagnosis.causes[0].name if diagnosis.causes else "",
        rules=tuple(dict.fromkeys(a.rule for a in engine.history if a.severity != "info")),
    )


def _fault(run: Trained) -> int:
    """The first step that is not healthy."""
    return (run.case.fault or 0) if run.case.causes else len(run.losses)


def _alarms(on: Mapping[str, list[int]]) -> list[int]:
    """Whatever it is that rings: what is close is one alarm to a person."""
    return episodes(sorted({step for steps in on.values() for step in steps}), APART)


def _first(on: Mapping[str, list[int]], twin: Mapping[str, list[int]], fault: int) -> int | None:
    """What rings in the twin at about the same step, by the same rule, is not about the fault."""
    known = {what: episodes(steps, APART) for what, steps in twin.items()}
    found = [
        step
        for what, steps in on.items()
        for step in episodes(steps, APART)
        if step >= fault and not any(abs(step - t) < APART for t in known.get(what, ()))
    ]
    return min(found, default=None)


def _received(
    log: Run, losses: Array, detectors: Mapping[str, Detector]
) -> tuple[Engine, dict[str, dict[str, list[int]]]]:
    """By detector and rule (the others have one, without a name), the steps at which it is on."""
    engine = _engine(log)
    norms = norms_of(log, len(losses))
    others = {name: {"": detect(losses, norms)} for name, detect in detectors.items()}
    return engine, {OURS: _on(engine, len(losses)), **others}


def _engine(log: Run, announced: bool = True) -> Engine:
    engine = Engine()
    for event in log.events:
        if event.kind == "change" and announced:
            engine.observe_event(event)
    for block in log.blocks:
        engine.observe(block)
    return engine


def _on(engine: Engine, end: int) -> dict[str, list[int]]:
    """By rule, the steps at which it is on in any layer."""
    on: dict[str, set[int]] = {}
    for s in alert_spans(a for a in engine.history if a.severity != "info"):
        on.setdefault(s.rule, set()).update(range(min(s.fired.values()), end if s.until is None else s.until))
    return {rule: sorted(steps) for rule, steps in on.items()}


def norms_of(log: Run, length: int) -> Array:
    """The gradient norm by step, before clipping where it is clipped."""
    out = np.full(length, np.nan)
    known = {key.signal for key in log.keys}
    for signal in ("gradient_norm_before_clip", "gradient_norm"):
        if signal in known and np.isnan(out).all():
            steps, values = log.series(signal, "")
            kept = steps < len(out)
            out[steps[kept].astype(int)] = values[kept]
    return out


@dataclass(frozen=True)
class Figures:
    """Of one detector over many runs. lead: median over unstable runs. false: alarms per 10,000 healthy steps."""

    recall: float
    lead: float
    false: float


def figures(verdicts: Iterable[Verdict], detector: str) -> Figures:
    """See Figures."""
    verdicts = list(verdicts)
    bad = [v for v in verdicts if v.run.case.causes]
    steps = sum(v.healthy_steps for v in verdicts)
    return Figures(
        recall=_share(bad, lambda v: v.first[detector] is not None),
        lead=statistics.median(v.lead(detector) for v in bad) if bad else float("nan"),
        false=1e4 * sum(v.false[detector] for v in verdicts) / max(steps, 1),
    )


def right_causes(verdicts: Iterable[Verdict]) -> float:
    """Share of unstable runs whose first cause is right."""
    return _share([v for v in verdicts if v.run.case.causes], lambda v: v.right)


def lead_over(verdicts: Iterable[Verdict], *others: str) -> float:
    """Median over unstable runs of our lead over another, or, of several, over whichever is first in that run; NaN of
    none."""
    bad = [v for v in verdicts if v.run.case.causes] if others else []
    leads = [v.lead(OURS) - max(v.lead(name) for name in others) for v in bad]
    return statistics.median(leads) if leads else float("nan")


def _share(verdicts: list[Verdict], true: Callable[[Verdict], bool]) -> float:
    return sum(map(true, verdicts)) / len(verdicts) if verdicts else float("nan")
