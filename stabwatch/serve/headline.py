"""The alerts of a run in a few words, from the events that its agent has written."""

from __future__ import annotations

from dataclasses import dataclass, field

from stabwatch.alerts.catalogue import BY_NAME
from stabwatch.alerts.evidence import TOGETHER
from stabwatch.alerts.incidents import is_over, rank
from stabwatch.runlog import Event

LAST = "TrainingStopped"
"""It is what happened to the process, and comes after what happened in the training."""


@dataclass
class _Fired:
    """One rule that fired. layers: where it ever fired. firing: severity now, by signal and layer."""

    rule: str
    severity: str
    onset: int
    layer: str
    summary: str
    layers: set[str] = field(default_factory=set)
    firing: dict[tuple[str, str], str] = field(default_factory=dict)


class Headline:
    """The rules that fired in a run, in bounded memory."""

    def __init__(self) -> None:
        self._fired: dict[str, _Fired] = {}

    def observe(self, event: Event) -> None:
        """Add an alert event."""
        data = event.data
        rule, severity, layer = (str(data.get(k) or "") for k in ("rule", "severity", "layer"))
        where = (str(data.get("signal") or ""), layer)
        if data.get("state") != "firing":
            if rule in self._fired:
                self._fired[rule].firing.pop(where, None)
            return
        onset = data.get("onset")
        onset = onset if isinstance(onset, int) else event.step or 0
        summary = str(data.get("summary") or rule)
        known = self._fired.setdefault(rule, _Fired(rule, severity, onset, layer, summary))
        if onset < known.onset:
            known.onset, known.layer, known.summary = onset, layer, summary
        known.severity = min(known.severity, severity, key=rank)
        known.firing[where] = severity
        if layer:
            known.layers.add(layer)

    @property
    def active(self) -> int:
        """Alerts above information that fire now."""
        return sum(len(f.firing) for f in self._problems())

    @property
    def firing(self) -> list[tuple[str, str, str]]:
        """Rule, severity and layer of each alert that fires now."""
        return [
            (f.rule, severity, layer) for f in list(self._fired.values()) for (_, layer), severity in f.firing.items()
        ]

    @property
    def severity(self) -> str:
        """The highest severity so far; '' if nothing above information fired."""
        return min((f.severity for f in self._problems()), key=rank, default="")

    @property
    def first(self) -> str:
        """The rule of the first incident; '' if there is none."""
        found = self._first()
        return found.rule if found else ""

    @property
    def text(self) -> str:
        """One sentence about the first incident; '' if there is none."""
        found = self._first()
        if found is None:
            return ""
        where = f", first in layer {found.layer}" if found.layer else ""
        others = f" {len(found.layers)} layers are affected." if len(found.layers) > 1 else ""
        gone = is_over(found.rule, found.onset, ((f.rule, f.onset) for f in self._problems() if f.firing))
        over = " It has returned to normal since." if gone else ""
        return f"{found.summary.rstrip('.')}{where}, since step {found.onset}.{others}{over}"

    def _problems(self) -> list[_Fired]:
        return [f for f in self._fired.values() if f.severity != "info"]

    def _first(self) -> _Fired | None:
        """The same order as that of the diagnosis."""
        problems = self._problems()
        earliest = min((f.onset for f in problems), default=0)

        def order(fired: _Fired) -> tuple[bool, bool, int, int, int]:
            near = fired.onset <= earliest + TOGETHER
            declared = BY_NAME.get(fired.rule)
            symptom = not (near and declared is not None and declared.fact)
            return (fired.rule == LAST, symptom, 0 if near else fired.onset, rank(fired.severity), fired.onset)

        return min(problems, key=order, default=None)
