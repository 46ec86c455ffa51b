"""A run cut into segments: a new one begins where the step goes back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.detectors import descents, level_steps, short_curves, towers
from stabwatch.analysis.detectors.excursions import (
    EXCERPT,
    Excursion,
    Reference,
    excursions,
    from_its_onset,
    reference,
)
from stabwatch.analysis.readers.log import Column, LogRun, Remark, Role
from stabwatch.analysis.readers.names import CAMEL, is_perplexity, plain, role_of

_FREE = re.compile(
    r"(?<![a-z])(?:ep_ret|ep(?:isode)?_(?:(?:average|avg|mean)_)?score|(?:avg|mean|average|ep|episode|cumulative)_r|rew(?:ard)?s?(?!s?/(?:chosen|rejected|margins|accuracies))|returns?|ep_rew_mean|(?:policy(?:_gradient)?|actor|critic)_loss"
    r"|approx_kl|advantages?|[gd]_loss|loss_[gd]|loss/[gd]|gen(?:erator)?[_ ]?loss|disc(?:riminator)?[_ ]?loss"
    r"|loss_(?:gen|dis)\w*|[gd]_(?:gan|real|fake|[ab])|^(?:generator|discriminator)$)(?![a-z])",
    re.IGNORECASE,
)
"""Columns of reinforcement learning and adversarial training, whose losses need not fall. Rewards of preference
tuning (chosen, rejected) are excluded, because its loss falls."""
_EXPLORES = re.compile(r"(?<![a-z])(?:ε|eps(?:ilon)?|exploration(?:_rate)?)(?:_greedy)?(?![a-z])", re.IGNORECASE)
SELDOM = 0.1
"""Share of the records in which the exploration may rise: several runs in one log."""

_BEGINNING = 5
"""A log contains the start of training if its first step is within this many record intervals from 0."""


@dataclass(frozen=True)
class RunSegment:
    """Records of a run over which the step does not go back.

    steps, lines, times: of its records. before: the previous segment of the same run. restarted: it begins with a
    re-initialisation, without a reset of the step counter. watched: the records are those of a run folder, where NaN
    is recorded as NaN and an absent value was not measured.
    """

    run: LogRun
    columns: tuple[Column, ...]
    steps: NDArray[np.int64]
    lines: NDArray[np.int64]
    times: NDArray[np.float64]
    remarks: tuple[Remark, ...]
    before: RunSegment | None = None
    restarted: bool = False
    watched: bool = False

    def of(self, role: Role) -> Column | None:
        """The first column of a role with a value."""
        return next((c for c in self.columns if c.role == role and len(c)), None)

    @cached_property
    def loss(self) -> Column | None:
        """The training loss, or the validation loss if there is no other."""
        return self.of("loss") or self.of("eval_loss")

    @property
    def loss_name(self) -> str:
        """Name of the loss in a sentence."""
        if self.loss is not None and is_perplexity(self.loss.name):
            return "validation perplexity" if self.loss.role == "eval_loss" else "perplexity"
        if self.loss is not None and self.loss.role == "loss" and role_of(self.loss.name) == "component":
            return f"loss ('{self.loss.name}')"
        return "validation loss" if self.loss is not None and self.loss.role == "eval_loss" else "loss"

    @cached_property
    def finite_loss(self) -> Column | None:
        """The finite points of the loss."""
        return None if self.loss is None else picked(self.loss, np.isfinite(self.loss.values))

    @cached_property
    def dies(self) -> bool:
        """Whether the loss ends in non-finite values."""
        return self.loss is not None and len(self.loss) > 0 and not np.isfinite(self.loss.values[-1])

    @cached_property
    def reference(self) -> Reference | None:
        """Level and threshold of the finite loss."""
        return None if self.finite_loss is None or not len(self.finite_loss) else reference(self.finite_loss.values)

    @cached_property
    def excursions(self) -> list[Excursion]:
        """Excursions of the finite loss above its level."""
        loss = self.finite_loss
        if loss is None or self.reference is None:
            return []
        found = short_curves.explosion(loss.values) if self.fresh or len(loss) <= EXCERPT else []
        found = found or excursions(loss.values, self.reference, self.fresh, self.dies)
        found = found or short_curves.spikes(loss.values, self.fresh) or level_steps.steps_up(loss.values)
        found = found or descents.breaks(loss.values) or towers.towers(loss.values)
        return [from_its_onset(loss.values, e) for e in found] if self.fresh else found

    @cached_property
    def fresh(self) -> bool:
        """Whether it contains the start of training."""
        if self.restarted or not len(self.steps):
            return self.restarted
        apart = np.diff(np.unique(self.steps))
        return self.run.step_unit == "ordinal" or int(self.steps[0]) <= _BEGINNING * (
            float(np.median(apart)) if len(apart) else 1
        )

    @cached_property
    def must_fall(self) -> bool:
        """Whether the loss of a healthy run falls. Not so in reinforcement learning and adversarial training."""
        named = any(_FREE.search(plain(CAMEL.sub("_", column.name))) for column in self.run.columns)
        return self.run.comparable and not named and not any(map(_explores, self.run.columns))


def _explores(column: Column) -> bool:
    """Whether a column is the share of random actions: at most 1, and never rising. The privacy loss ε rises."""
    if not len(column) or not _EXPLORES.fullmatch(plain(column.name).rsplit("/", 1)[-1]):
        return False
    rises = float(np.mean(np.diff(column.values) > 0)) if len(column) > 1 else 0.0
    return bool(column.values.min() >= 0 and column.values.max() <= 1 and rises <= SELDOM)


def picked(column: Column, keep: NDArray[np.bool_] | slice) -> Column:
    """Some points of a column."""
    return Column(column.name, column.role, column.steps[keep], column.values[keep], column.lines[keep])


def segments(run: LogRun, watched: bool = False) -> Iterator[RunSegment]:
    """The segments of a run, in the order of the file."""
    cuts = np.flatnonzero(np.diff(run.steps) < 0) + 1
    bounds = [0, *cuts.tolist(), len(run.steps)]
    split = [_split(column, run, cuts) for column in run.columns]
    before: RunSegment | None = None
    for number, (a, b) in enumerate(pairwise(bounds)):
        before = RunSegment(
            run=run,
            columns=tuple(pieces[number] for pieces in split),
            steps=run.steps[a:b],
            lines=run.lines[a:b],
            times=run.times[a:b],
            remarks=_remarks(run, number, cuts),
            before=before,
            watched=watched,
        )
        yield before


def cut(segment: RunSegment, at: int) -> tuple[RunSegment, RunSegment]:
    """A segment before the step of a re-initialisation, and from it."""

    def side(late: bool, before: RunSegment | None) -> RunSegment:
        keep = (segment.steps >= at) == late
        return RunSegment(
            run=segment.run,
            columns=tuple(picked(c, (c.steps >= at) == late) for c in segment.columns),
            steps=segment.steps[keep],
            lines=segment.lines[keep],
            times=segment.times[keep],
            remarks=tuple(r for r in segment.remarks if ((r.step or 0) >= at) == late),
            before=before,
            restarted=late or segment.restarted,
            watched=segment.watched,
        )

    early = side(False, segment.before)
    return early, side(True, early)


def _split(column: Column, run: LogRun, cuts: NDArray[np.int64]) -> list[Column]:
    """Cut a column: by lines if the format has them, otherwise where the steps of the column go back."""
    if not len(cuts):
        return [column]
    if len(column) and column.lines[0] >= 0:
        at = np.array([_first_after(column, int(run.lines[cut - 1]), int(run.lines[cut])) for cut in cuts])
    else:
        at = np.flatnonzero(np.diff(column.steps) < 0) + 1
        at = np.concatenate((at[: len(cuts)], np.full(max(len(cuts) - len(at), 0), len(column)))).astype(np.int64)
    bounds = [0, *at.tolist(), len(column)]
    return [picked(column, slice(a, b)) for a, b in pairwise(bounds)]


def _first_after(column: Column, last: int, first: int) -> int:
    """Where a segment begins in a column, from the lines of the last record before it and of its first record.

    An evaluation between the two belongs to the segment whose steps it continues.
    """
    low, high = np.searchsorted(column.lines, (last, first), side="left")
    back = np.flatnonzero(np.diff(column.steps[max(low - 1, 0) : high]) < 0)
    return max(int(low) - 1, 0) + int(back[0]) + 1 if len(back) else int(high)


def _remarks(run: LogRun, number: int, cuts: NDArray[np.int64]) -> tuple[Remark, ...]:
    at = np.searchsorted(run.lines[cuts], [r.line for r in run.remarks], side="right")
    return tuple(remark for remark, place in zip(run.remarks, at.tolist(), strict=True) if place == number)
