"""Fractions of a line that are no part of a whole: `Batch 3/4000` may be batch 4,000 of epoch 3."""

from __future__ import annotations

from stabwatch.analysis.readers.templates import Template, count

Fraction = tuple[int | None, int | None]


class Fractions:
    """The last fraction of each template, and the words before those that are epoch and batch."""

    def __init__(self) -> None:
        self._last: dict[int, Fraction] = {}
        self._words: set[str] = set()

    def before(self, template: Template, numbers: list[str]) -> Fraction | None:
        """The fraction before, if the first number is the epoch: the second rises while it stays. None if it is not."""
        if template.total is None or template.step is None or template.epoch is not None:
            return None
        now = count(numbers, template.step), count(numbers, template.total)
        before = self._last.get(id(template))
        self._last[id(template)] = now
        word = template.texts[template.step].split()[-1:]
        if word and word[0] in self._words:
            return None, None
        if before is None or None in (*now, *before) or before[0] != now[0] or not (now[1] or 0) > (before[1] or 0):
            return None
        self._words.update(word)
        return before
