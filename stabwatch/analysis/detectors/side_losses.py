"""Losses of given data beside those of a policy or a game: of a world model, of a reconstruction.

The losses of a policy and of a game need not fall. These do, as any other does, so each is judged as if it were alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors import divergence, spikes
from stabwatch.analysis.detectors.robust import Array
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.readers.log import Column
from stabwatch.analysis.readers.names import plain

OF_DATA = re.compile(
    r"(?:^|[/_ ])(?:world_)?model_loss$"
    r"|(?:^|[/_ ])mel[-_]?spec\w*_error$"
    r"|(?:^|[/_ ])(?:loss_)?(?:mel|recon\w*|rec|pixel|pix|image|l1|l2|mse|stft)(?:_loss)?(?:_\d)?$"
)
FEWEST = 6
"""Fewest records of such a loss."""
HIGH = 3.0
"""Ratio to its level before from which it is told: what a policy visits, and so what is modelled, changes."""
_CONDITIONS = ("LossSpike", "LossDivergence")


def find(segment: RunSegment) -> list[Incident]:
    """The gravest incident of each such column."""
    if segment.must_fall or segment.watched:
        return []
    return [incident for column in segment.columns for incident in _of_column(segment, column)]


def _of_column(segment: RunSegment, column: Column) -> Iterator[Incident]:
    if (
        not OF_DATA.search(plain(column.name))
        or len(column) < FEWEST
        or column.role not in ("loss", "component", "other")
    ):
        return
    alone = _alone(segment, column)
    loss = alone.finite_loss
    if loss is None or not len(loss) or loss.values.min() < 0:
        return
    found = [*divergence.find(alone), *spikes.find(alone)]
    high = [i for i in found if i.condition in _CONDITIONS and i.is_problem and _is_high(loss.values, i, loss)]
    for incident in high[:1]:
        yield replace(incident, signal=column.name, severity="warning", text=_named(incident.text, column.name))


def _is_high(values: Array, incident: Incident, loss: Column) -> bool:
    """Whether a rise is far above all records before it but the first ones."""
    at = int(np.searchsorted(loss.steps, incident.first_step))
    past = values[:at][-FEWEST:]
    return len(past) > 0 and float(values[at:].max()) >= HIGH * float(past.max())


def _named(text: str, name: str) -> str:
    return text.replace("The loss ", f"The loss '{name}' ", 1)


def _alone(segment: RunSegment, column: Column) -> RunSegment:
    """The segment with this column as its loss, and no other."""
    only = (replace(column, role="loss"),)
    return replace(segment, run=replace(segment.run, columns=only), columns=only, remarks=(), before=None)
