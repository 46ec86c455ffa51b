"""Records as the scalars that an experiment tracker takes: a step, a time, and numbers by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stabwatch.exporters.tables import column, pieces
from stabwatch.runlog import Meta, RecordBatch

PREFIX = "stabwatch/"
"""Before each name, so that no number of the user's own is touched."""


@dataclass(frozen=True)
class Scalars:
    """What was measured at one step. A measured value may be NaN. time: seconds since the epoch."""

    step: int
    time: float
    values: dict[str, float]


def scalars(batch: RecordBatch) -> Iterator[Scalars]:
    """One `Scalars` for each record."""
    names = [PREFIX + column(key) for key in batch.layout.keys]
    for piece in pieces(batch):
        values, measured = piece.values, piece.measured
        for i, (step, time) in enumerate(zip(piece.steps.tolist(), piece.times.tolist(), strict=True)):
            there = np.flatnonzero(measured[i]).tolist()
            yield Scalars(step, time, {names[at]: float(values[i, at]) for at in there})


def facts(meta: Meta) -> dict[str, Any]:
    """What a tracker shows as the configuration of a run."""
    model = {name: meta.model.get(name) for name in ("name", "parameters")}
    labels = {"name": meta.name, "tags": meta.tags, "notes": meta.notes}
    return {
        **{name: value for name, value in labels.items() if value},
        "run": meta.run, "host": meta.host, "world_size": meta.world_size, "model": model, "versions": meta.versions,
        "settings": meta.config,
    }  # fmt: skip


def identifier(meta: Meta) -> str:
    """A name of letters, digits, `-` and `_` that is the same whenever this run is written."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", meta.run)[:80] + f"-{int(meta.created):x}"
