"""Records of a text without steps: whether epochs number them, and which lines are records."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from stabwatch.analysis.readers.names import role_of

Unstepped = tuple[int, int | None, dict[str, float]]
"""Line, epoch, values."""

_RISES = 0.8
"""Share of pairs of lines in which the count at their start rises."""
_LEADING = re.compile(r"\s*[\[(#|]{0,2}\s*(\d{1,9})(?![\d.,/%-])(?=[\])|:]|\s)")
_METRIC = re.compile(r"\b(?:rmse|mse|mae|logloss|error|auc|elbo|nll|reward|ppl)\b", re.IGNORECASE)


def by_epoch(records: list[Unstepped]) -> bool:
    """Whether epochs number the records: nearly all have one, and few keys repeat within one epoch."""
    epochs = [epoch for _, epoch, _ in records if epoch is not None]
    if 5 * len(epochs) < 4 * len(records) or len(set(epochs)) < 2:
        return False
    last: int | None = None
    seen, again, count = set[str](), 0, 0
    for _, epoch, values in records:
        if epoch != last:
            last, seen = epoch, set()
        told = {key for key in values if role_of(key) != "other"}
        again += len(seen & told)
        count += len(told)
        seen |= told
    return again <= 0.2 * count


def without_settings(records: list[Unstepped]) -> list[Unstepped]:
    """Records with a key that occurs again. Values that are printed once before training are not records."""
    times = Counter(key for _, _, values in records for key in values)
    return [record for record in records if any(times[key] > 1 for key in record[2])] or records


def counts_records(head: str) -> bool:
    """Whether the numbers at the start of lines with a loss rise from line to line. Steps rise; ranks do not."""
    found = [_LEADING.match(line) for line in head.splitlines() if "loss" in line.lower() or _METRIC.search(line)]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) < 2 or 2 * len(numbers) < len(found):
        return False
    steps = list(pairwise(numbers))
    distinct = len(set(numbers)) >= _RISES * len(numbers)
    return distinct and sum(a < b for a, b in steps) >= _RISES * len(steps)
