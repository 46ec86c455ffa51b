"""Words for the unit of a log's records: steps, epochs, or numbered records with their line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from stabwatch.alerts import Diagnosis
from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.readers.log import StepUnit

_STEP = re.compile(r"\b(step|Step)(s?) (?=-?\d)")
WORDS: dict[StepUnit, str] = {"step": "step", "epoch": "epoch", "ordinal": "record"}


def in_units(incidents: Sequence[Incident], unit: StepUnit) -> tuple[Incident, ...]:
    """The incidents, with sentences in the unit of the log. A numbered record also has the line where it begins."""
    return tuple(incidents) if unit == "step" else tuple(_reworded(incident, unit) for incident in incidents)


def diagnosis_in_units(diagnosis: Diagnosis, unit: StepUnit) -> Diagnosis:
    """The diagnosis with the verdict and the evidence in the unit of the log."""
    if unit == "step":
        return diagnosis
    causes = tuple(replace(c, evidence=tuple(_words(e, unit) for e in c.evidence)) for c in diagnosis.causes)
    return replace(diagnosis, verdict=_words(diagnosis.verdict, unit), causes=causes)


def _reworded(incident: Incident, unit: StepUnit) -> Incident:
    text = _words(incident.text, unit)
    if unit == "ordinal" and incident.line is not None:
        number = re.compile(rf"\brecord {incident.first_step}\b")
        text = number.sub(f"record {incident.first_step} (line {incident.line})", text, count=1)
    return replace(incident, text=text, evidence=tuple(_words(e, unit) for e in incident.evidence))


def _words(text: str, unit: StepUnit) -> str:
    return _STEP.sub(lambda found: f"{WORDS[unit].title() if found[1] == 'Step' else WORDS[unit]}{found[2]} ", text)
