"""What the library says of a run, and whether that is the case's cause. `said` alone knows the analysis' interface."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.reports.case import Case, Outcome
from benchmarks.reports.checks import hurt_step
from stabwatch.analysis import analyze

APART = 20
"""Steps: alarms that are closer are one, to a person."""
LOUD = ("warning", "critical")


@dataclass(frozen=True)
class Alarm:
    """A condition that fired. onset: step at which it began; step: at which it was said."""

    name: str
    severity: str
    onset: int
    step: int
    layer: str = ""


@dataclass(frozen=True)
class Said:
    """What the library says of a run. cause: name of the first cause, '' for none; layers: where it says it is.

    confidence: in the first cause. second: name of the cause after it.
    """

    alarms: tuple[Alarm, ...] = ()
    cause: str = ""
    layers: tuple[str, ...] = ()
    sentence: str = ""
    records: int = 0
    notes: tuple[str, ...] = ()
    confidence: str = ""
    second: str = ""

    @property
    def loud(self) -> list[Alarm]:
        """Warnings and critical alarms, in the order in which they were said."""
        return sorted((a for a in self.alarms if a.severity in LOUD), key=lambda a: a.step)


def said(folder: Path) -> Said:
    """Analyse one run folder. The only place that reads the library's analysis."""
    analysis = analyze(folder)
    alarms = tuple(Alarm(a.rule, a.severity, a.onset, a.step, a.layer) for a in analysis.alerts if a.state == "firing")
    missing = tuple(
        f"{m['tap']} at {m['site'] or 'the model'}: {m['reason']}" for m in analysis.coverage.get("missing", ())
    )
    errors = tuple(f"error in {e.get('probe', 'stabwatch')}: {e.get('message', '')}" for e in analysis.errors)
    causes = analysis.diagnosis.causes
    return Said(
        alarms=alarms,
        cause=causes[0].name if causes else "",
        layers=causes[0].layers if causes else (),
        sentence=analysis.diagnosis.verdict,
        records=analysis.records,
        notes=missing + errors,
        confidence=causes[0].confidence if causes else "",
        second=causes[1].name if len(causes) > 1 else "",
    )


def said_of(run: Outcome) -> Said:
    """What is said of all watched models of a run: alarms together, the first cause that any names."""
    each = [said(folder) for folder in run.folders]
    first = next((one for one in each if one.cause), each[0] if each else Said())
    alarms = tuple(alarm for one in each for alarm in one.alarms)
    notes = tuple(note for one in each for note in one.notes)
    return replace(first, alarms=alarms, notes=notes)


def episodes(steps: Iterable[int], apart: int = APART) -> list[int]:
    """First steps of the groups of steps that are closer than `apart`."""
    out: list[int] = []
    last = None
    for step in sorted(steps):
        if last is None or step - last >= apart:
            out.append(step)
        last = step
    return out


@dataclass(frozen=True)
class Result:
    """A case in one way of measuring.

    found: the first warning or critical alarm at or after the fault that the twin does not raise about then, or None.
    hurt: step at which the loss is hurt. false: alarms in the twin, and before the fault in the broken run.
    healthy_steps: steps in which those could be.
    """

    case: Case
    shown: bool
    hurt: int | None
    found: Alarm | None
    said: Said
    twin: Said
    false: int
    healthy_steps: int
    steps: int

    @property
    def right(self) -> bool:
        """The first cause is one that the case accepts, and something was found."""
        return self.found is not None and self.said.cause in self.case.causes

    @property
    def where_right(self) -> bool | None:
        """The first layer of the first cause is where the fault is; None where the case expects no layer."""
        if self.case.where is None:
            return None
        layer = self.said.layers[0] if self.said.layers and self.found else None
        return layer is not None and any(_below(layer, prefix) for prefix in self.case.where)

    @property
    def lead(self) -> int | None:
        """Steps from the alarm to the hurt loss, to the end of the run where the loss never shows it."""
        if self.found is None:
            return None
        return (self.steps if self.hurt is None else self.hurt) - self.found.step


def _below(layer: str, prefix: str) -> bool:
    return prefix == "" or layer == prefix or layer.startswith(prefix + ".")


def first_found(broken: Sequence[Alarm], twin: Sequence[Alarm], fault: int) -> Alarm | None:
    """The first alarm that begins at or after the fault and that the twin does not raise within `APART` steps."""
    for alarm in broken:
        known = any(a.name == alarm.name and abs(a.step - alarm.step) < APART for a in twin)
        if alarm.onset >= fault and not known:
            return alarm
    return None


def judge(case: Case, broken: Outcome, twin: Outcome) -> Result:
    """Compare what is said of the broken run with its known cause."""
    bad, good = said_of(broken), said_of(twin)
    early = episodes(a.step for a in bad.loud if a.step < case.fault)
    late = episodes(a.step for a in good.loud if a.step >= case.fault)
    return Result(
        case=case,
        shown=case.check(broken, twin),
        hurt=hurt_step(broken.losses, twin.losses, case.fault),
        found=first_found(bad.loud, good.loud, case.fault),
        said=bad,
        twin=good,
        false=len(early) + len(late),
        healthy_steps=case.fault + max(len(twin.losses) - case.fault, 0),
        steps=len(broken.losses),
    )


@dataclass(frozen=True)
class HealthyResult:
    """A healthy workload in one way of measuring."""

    name: str
    about: str
    steps: int
    learned: bool
    said: Said
    false: int = field(default=0)


def judge_healthy(name: str, about: str, run: Outcome, learned: bool) -> HealthyResult:
    """Count the alarms of a healthy run."""
    report = said_of(run)
    return HealthyResult(name, about, len(run.losses), learned, report, len(episodes(a.step for a in report.loud)))
