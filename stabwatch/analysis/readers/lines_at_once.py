"""Parses free text, many lines of one form at once; see `lines.py` for single lines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.readers.line_runs import Columns
from stabwatch.analysis.readers.lines import Parser
from stabwatch.analysis.readers.templates import Template

Floats = NDArray[np.float64]


class RunsParser(Parser):
    """A parser that also takes the numbers of consecutive lines as columns."""

    def take_all(self, template: Template, lines: NDArray[np.int64], numbers: Columns) -> int:
        """See `line_runs.Parser`: lines with steps that never fall, to which no rule of `_step` applies."""
        assert template.step is not None
        places: dict[str, tuple[int, float]] = {}
        for at, key, times in template.values:
            places.setdefault(key, (at, times))
        try:
            steps = numbers(template.step)
            epochs = steps[:0] if template.epoch is None else numbers(template.epoch)
            lengths = steps[:0] if template.length is None else numbers(template.length)
        except ValueError:
            return 0
        if template.unnamed and (steps % 1).any():
            return 0
        if self.tables.header or self._pending or not (_countable(steps) and _countable(epochs)):
            return 0
        whole = steps.astype(np.int64)
        before = np.empty_like(whole)
        before[:1], before[1:] = self._raw, whole[:-1]
        same = whole == before  # a bar that is drawn again
        if same[0] and not (self._epoch_of_step == self.epoch and places.keys() <= self._keys):
            return 0
        count = _prefix(whole >= before)
        if template.of_epoch:
            count = min(count, self._within_epoch(template, epochs, lengths))
        elif template.epoch is not None and len(epochs):
            count = min(count, _prefix((epochs == np.append(epochs[:1], epochs[:-1])) | ~same))
        try:
            values = {key: numbers(at)[:count] * times for key, (at, times) in places.items() if count}
        except ValueError:
            return 0
        if count == 0:
            return 0
        new = np.flatnonzero(~same[:count])
        self._evaluation = False
        self.unread.understood(count)
        if template.epoch is not None:
            self.epoch = int(epochs[count - 1])
            self._whole = self._whole and not (epochs[:count] % 1).any()
        if len(lengths):
            self._length = int(lengths[count - 1])
        self._step_estimated = False
        self._ends.at_end = template.of_epoch and self._length == int(whole[count - 1])
        if values:
            self._ends.draw({key: float(column[-1]) for key, column in values.items()}, self.epoch)
        self._at = int(lines[count - 1])
        if len(new) and not values:
            self._raw, self._epoch_of_step, self._keys = int(whole[count - 1]), self.epoch, set()
        elif len(new):
            taken = whole[new]
            self.builder.extend(self._offset + taken, lines[new], {key: column[new] for key, column in values.items()})
            last = int(taken[-2]) if len(taken) > 1 else self._with_values
            self._apart = int(taken[-1]) - last
            self._raw = self._with_values = int(taken[-1])
            self._epoch_of_step, self._keys = self.epoch, set(values)
        return count

    def _within_epoch(self, template: Template, epochs: Floats, lengths: Floats) -> int:
        """How many of some lines of a progress bar belong to the epoch of the record before them."""
        slash = template.epoch is not None and template.texts[template.epoch + 1].strip() == "/"
        ends = self._ends.possible and bool(template.values)
        if ends or template.evaluates or slash or self._raw < 0 or self._epoch_of_step != self.epoch:
            return 0
        if template.epoch is not None and self.epoch is None:
            return 0
        own = epochs == self.epoch if len(epochs) else np.ones(max(len(lengths), 1), np.bool_)
        alike = lengths == lengths[:1] if len(lengths) else np.ones(len(own), np.bool_)
        known = len(lengths) > 0 and np.isfinite(lengths[0]) and abs(lengths[0]) < 1 << 62
        return _prefix(own & alike) if known and len(own) == len(alike) else 0


def _countable(numbers: Floats) -> bool:
    """Are they whole numbers that a computer can count? Not if one is NaN."""
    return not len(numbers) or bool(max(numbers.max(), -numbers.min()) < 1 << 62)


def _prefix(good: NDArray[np.bool_]) -> int:
    """How many are good before the first that is not."""
    return len(good) if good.all() else int(np.argmin(good))
