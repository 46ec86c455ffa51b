"""Where an alert is: the machine, the folder, the page, and what is known of the rank and the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stabwatch.alerts import Rule
from stabwatch.alerts.rule import RUNBOOKS

RANKS = {
    "ReplicasDiffer": "replica_difference_rank",
    "NonFinite": "rank_nonfinite_worst",
    "SlowRank": "rank_slowest",
    "RankLossHigher": "rank_loss_highest",
    "RankLossLower": "rank_loss_lowest",
}
"""The number in the context of an alert that names a rank, by rule."""

Batches = Callable[[int], Sequence[str]]
"""What is known of the batches of a step, in words."""


def no_batches(step: int) -> Sequence[str]:
    """Nothing is known."""
    return ()


@dataclass(frozen=True)
class Where:
    """Where a run is. page: address of its live page, with a slash at the end; '' if nobody serves one.

    host: '' if it is not known; so is folder.
    """

    run: str
    host: str = ""
    folder: str = ""
    page: str = ""

    def runbook(self, rule: str) -> str:
        """Address of the runbook of a rule: on the page, or in the documentation."""
        return f"{self.page}runbooks/{rule}" if self.page else f"{RUNBOOKS}/{rule}.md"


def rank_of(rule: str, context: Mapping[str, Any]) -> int | None:
    """The rank that an alert points at; None if it is not known, or it is no question of ranks."""
    rank = context.get(RANKS.get(rule, ""))
    return int(rank) if isinstance(rank, int | float) and math.isfinite(rank) and rank >= 0 else None


def details(where: Where, data: Mapping[str, Any], rule: Rule | None, batches: Batches) -> dict[str, Any]:
    """What a notification says of one alert besides its name. data: of an alert event, with `onset`."""
    name, onset = str(data.get("rule") or ""), data.get("onset")
    context = data.get("context")
    return {
        "host": where.host,
        "folder": where.folder,
        "page_url": where.page,
        "value": data.get("value"),
        "threshold": data.get("threshold"),
        "rank": rank_of(name, context if isinstance(context, Mapping) else {}),
        "batches": list(batches(onset)) if isinstance(onset, int) else [],
        "remedy": list(rule.remedy) if rule else [],
        "runbook_url": where.runbook(name) if rule else "",
    }


def sentence(entry: Mapping[str, Any]) -> list[str]:
    """The details as lines of text; what is not known is left out."""
    facts = []
    value, threshold = entry.get("value"), entry.get("threshold")
    if isinstance(value, int | float):
        limit = f" (limit {threshold:.4g})" if isinstance(threshold, int | float) else ""
        facts.append(f"Value {value:.4g}{limit}.")
    if entry.get("rank") is not None:
        facts.append(f"Rank {entry['rank']}.")
    lines = [" ".join(facts)] if facts else []
    lines += [f"Batch: {batch}" for batch in entry.get("batches", [])[:2]]
    lines += [f"Do now: {' '.join(entry['remedy'])}"] if entry.get("remedy") else []
    place = ":".join(part for part in (entry.get("host"), entry.get("folder")) if part)
    lines += [f"Run folder: {place}"] if place else []
    lines += [f"Page: {entry['page_url']}"] if entry.get("page_url") else []
    return lines
