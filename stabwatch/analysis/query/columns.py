"""The columns of a record layout that one query reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from stabwatch.exporters.declared import own_name
from stabwatch.runlog import RecordBatch, RecordLayout, SeriesKey

Layers = str | Sequence[str] | None
_FEW = 8
"""Most names that an error lists."""


@dataclass(frozen=True)
class Points:
    """Measured values, one row each, in the order of the records.

    where: name of an index that the log keeps beside the value, 'head' or 'rank'; '' if it keeps none.
    indices: the head or rank that each value belongs to; -1 where the log names none.
    """

    steps: NDArray[np.int64]
    times: NDArray[np.float64]
    layers: NDArray[np.object_]
    values: NDArray[np.float64]
    where: str
    indices: NDArray[np.int64]

    def only(self, keep: NDArray[np.bool_]) -> Points:
        """Some of the rows."""
        return Points(
            self.steps[keep], self.times[keep], self.layers[keep], self.values[keep], self.where, self.indices[keep]
        )


class Columns:
    """The series of one signal in some layers, in one record layout."""

    def __init__(self, layout: RecordLayout, signal: str, layers: Layers) -> None:
        keys = [own_name(key) for key in layout.keys]
        mine = [i for i, key in enumerate(keys) if key.signal == signal and is_wanted(key.layer, layers)]
        self.empty = not mine
        self._layout = replace(layout, series=tuple(layout.series[i] for i in mine))
        self._layers = np.array([keys[i].layer for i in mine], dtype=object)
        fields = [pair for fields in layout.fields for pair in fields]
        self._beside = [_index_after(fields, series.indices) for series in self._layout.series]
        self.where = next((fields[at][0] for at in self._beside if at is not None), "")

    def points(self, batch: RecordBatch) -> Points:
        """The measured values of a batch."""
        mine = RecordBatch(self._layout, batch.steps, batch.times, batch.rows)
        rows, columns = np.nonzero(mine.measured)
        indices = np.full((len(batch), len(self._beside)), np.nan)
        for column, at in enumerate(self._beside):
            if at is not None:
                indices[:, column] = batch.rows[:, at]
        found = indices[rows, columns]
        return Points(
            batch.steps[rows], batch.times[rows], self._layers[columns], mine.values[rows, columns], self.where,
            np.where(np.isfinite(found), found, -1).astype(np.int64),
        )  # fmt: skip


def is_wanted(layer: str, layers: Layers) -> bool:
    """Whether a layer is asked for: by its name, a pattern such as `blocks.*`, or several of them; None for all."""
    if layers is None:
        return True
    return any(layer == one or fnmatchcase(layer, one) for one in ([layers] if isinstance(layers, str) else layers))


def _index_after(fields: Sequence[tuple[str, str]], indices: tuple[int, ...]) -> int | None:
    """The column with the index of a maximum: in each reduction it follows the maximum."""
    if len(indices) != 1:
        return None
    after = indices[0] + 1
    return after if after < len(fields) and fields[after][1] == "arg" else None


def layers_of(keys: Iterable[SeriesKey], signal: str) -> list[str]:
    """The layers of a signal, in forward order."""
    names = map(own_name, keys)
    return list(dict.fromkeys(key.layer for key in names if key.signal == signal))


def listed(names: Sequence[str]) -> str:
    """The first few of some names, in words."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(name or "''" for name in names[:_FEW]) + more


def meant(name: str, names: Iterable[str]) -> str:
    """A question that names the closest name; '' if none is close."""
    close = get_close_matches(name, list(names), 1)
    return f" Did you mean {close[0]!r}?" if close else ""
