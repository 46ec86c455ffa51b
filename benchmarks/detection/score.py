"""From runs to figures: what each detector saw of a run, and when."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.detection.others import OTHERS, episodes
from benchmarks.detection.runs import Array, Trained, hurt
from stabwatch.alerts import Engine, diagnose

OURS = "stabwatch"


@dataclass(frozen=True)
class Verdict:
    """One run. first: by detector, its first alarm at or after the fault; None: never. false: by detector, its alarms
    on healthy steps. healthy_steps: how many of those there are. cause: what the diagnosis named first.
    """

    run: Trained
    hurt: int | None
    first: dict[str, int | None]
    false: dict[str, int]
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


def judge(run: Trained) -> Verdict:
    """Replay every detector over one run."""
    engine = Engine()
    for block in run.log.blocks:
        engine.observe(block)
    loud = [a for a in engine.history if a.state == "firing" and a.severity != "info"]
    norms = _series(run, "gradient_norm_before_clip", "gradient_norm")
    alarms = {OURS: episodes([a.step for a in loud])}
    alarms |= {name: episodes(detect(run.losses, norms)) for name, detect in OTHERS.items()}
    bad, steps = bool(run.case.causes), len(run.losses)
    fault = (run.case.fault or 0) if bad else steps
    diagnosis = diagnose(engine)
    return Verdict(
        run=run,
        hurt=hurt(run),
        first={name: next((s for s in found if s >= fault), None) for name, found in alarms.items()},
        false={name: sum(s < fault for s in found) for name, found in alarms.items()},
        healthy_steps=fault,
        cause=diagnosis.causes[0].name if diagnosis.causes else "",
        rules=tuple(dict.fromkeys(a.rule for a in loud)),
    )


def _series(run: Trained, *signals: str) -> Array:
    """By step, the first of some signals that there is."""
    out = np.full(len(run.losses), np.nan)
    known = {key.signal for key in run.log.keys}
    for signal in signals:
        if signal in known and np.isnan(out).all():
            steps, values = run.log.series(signal, "")
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


def lead_over(verdicts: Iterable[Verdict], others: Iterable[str]) -> float:
    """Median over unstable runs of our lead over the best of some others, run by run."""
    names, bad = list(others), [v for v in verdicts if v.run.case.causes]
    return statistics.median(v.lead(OURS) - max(v.lead(name) for name in names) for v in bad)


def _share(verdicts: list[Verdict], true: Callable[[Verdict], bool]) -> float:
    return sum(map(true, verdicts)) / len(verdicts) if verdicts else float("nan")
