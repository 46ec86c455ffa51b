"""From findings to causes, with the titles, remedies and runbooks that the same things have live."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabwatch.alerts import Cause, Rule
from stabwatch.alerts.catalogue import BY_NAME
from stabwatch.alerts.root_causes import RECENT, ROOT_CAUSES, TOGETHER, RootCause
from stabwatch.alerts.rule import SEVERITIES
from stabwatch.analysis.findings import Finding, Kind
from stabwatch.analysis.readers.log import LogRun
from stabwatch.analysis.remedies import RULES, remedies

KNOWN: dict[str, Rule | RootCause] = {**BY_NAME, **{cause.name: cause for cause in ROOT_CAUSES}}
"""What has a runbook."""

FOLLOWS = "A loss spike"
"""Title of a spike that something else came before; the live rule's says that nothing did."""


def causes_of(run: LogRun, findings: Sequence[Finding]) -> list[tuple[Finding, Cause]]:
    """One for each kind of trouble, by onset, those too close to tell apart by severity; each with its first finding.

    A learning rate that jumped shortly before comes first. Distances are counted in records.
    """
    by_kind: dict[Kind, list[Finding]] = {}
    for finding in findings:
        if finding.trouble:
            by_kind.setdefault(finding.kind, []).append(finding)
    if not by_kind:
        return []
    onset = min(group[0].step for group in by_kind.values())
    groups = sorted(by_kind.values(), key=lambda group: _order(group, onset + TOGETHER * _apart(run)))
    jumps = [f for f in findings if f.kind == "learning_rate_jump" and 0 <= onset - f.step <= RECENT * _apart(run)]
    if jumps:
        groups.insert(0, jumps)
    return [(group[0], _cause(group, place)) for place, group in enumerate(groups)]


def _order(group: list[Finding], together: float) -> tuple[float, int, int]:
    gravest = min(SEVERITIES.index(f.severity) for f in group)
    return (0 if group[0].step <= together else group[0].step, gravest, group[0].step)


def _apart(run: LogRun) -> float:
    """Steps between two records."""
    apart = np.diff(np.unique(run.steps))
    return float(np.median(apart)) if len(apart) else 1.0


def _cause(group: list[Finding], place: int) -> Cause:
    first = group[0]
    known, own = KNOWN.get(RULES.get(first.kind, "")), remedies(first.kind)
    times = f" {len(group)} times in this log." if len(group) > 1 else ""
    where = f" (line {first.line})" if first.line >= 0 else ""
    return Cause(
        name=known.name if known else first.kind,
        title=FOLLOWS if place and first.kind == "loss_spike" else known.title if known else own.title,
        since_step=first.step,
        layers=(),
        evidence=(f"{first.text}{where}{times}", *first.evidence),
        remedy=known.remedy if known else own.advice,
        references=known.references if known else (),
        confidence=round(max(f.confidence for f in group) * 0.7**place, 2),
        runbook_url=known.runbook_url if known else "",
    )
