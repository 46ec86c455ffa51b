"""What a log cannot show, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import number_of
from stabwatch.analysis.readers.log import Column, LogRun

SHORT = 20
"""Fewest records to distinguish a slow problem from noise."""
_MOST_NAMES = 6
"""Names of columns in a sentence."""


def _instead(run: LogRun, other: Column | None) -> str:
    """What was judged without a training loss, or which columns there are."""
    if other is not None:
        return f": the validation loss '{other.name}' was judged instead"
    names = [column.name for column in run.columns if column.name and len(column)]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f": no name of its columns is that of a loss ({', '.join(names[:_MOST_NAMES])}{more})" if names else ""


def limitations(run: LogRun, found: Sequence[RunSegment]) -> Iterator[str]:
    """One sentence per limitation. found: the segments of the run."""
    if run.of("loss") is None:
        other = run.of("eval_loss")
        yield f"No training loss in this log{_instead(run, other)}."
    norm = run.of("grad_norm")
    if norm is None:
        yield "No gradient norm in this log: a rise before that of the loss cannot be seen."
    elif len(norm) and not norm.values.any():
        yield "The gradient norm is 0 in every record: it was not measured, or no gradient arrives."
    if run.of("learning_rate") is None:
        yield "No learning rate in this log: its part in a problem cannot be seen."
    if not _timed(run):
        yield "No times were found in this log: slow steps and pauses cannot be seen."
    yield from _sparse(run)
    yield from _judged(found)
    yield "No signals by layer: this log cannot show where in the model a problem began."


def watched_limitations(run: LogRun, found: Sequence[RunSegment], note: str) -> Iterator[str]:
    """The same for a run folder. note: what the detectors did not read."""
    if run.of("loss") is None and len(run.steps):
        yield "No loss was recorded: it is not known how training went."
    yield from _judged(found)
    if note:
        yield note


def _judged(found: Sequence[RunSegment]) -> Iterator[str]:
    free = [segment for segment in found if segment.loss is not None and not segment.must_fall]
    if free and not free[0].run.comparable:
        yield (
            "The model makes its own data or is trained against another one, its targets grow, or its loss scatters "
            "around zero, as in reinforcement and adversarial learning: it was not judged whether the loss falls."
        )
    elif free:
        yield "The columns show reinforcement or adversarial learning, so it was not judged whether the loss falls."


def _timed(run: LogRun) -> bool:
    return bool(np.isfinite(run.times).any()) or run.of("step_seconds") is not None or run.of("throughput") is not None


def _sparse(run: LogRun) -> Iterator[str]:
    if run.step_unit == "ordinal":
        yield "No step in this log: its records were numbered instead."
    if not len(run.steps):
        return
    if len(run.steps) < SHORT:
        yield f"Only {number_of(len(run.steps))}: a slow rise or a standstill cannot be distinguished from noise."
    apart = np.diff(run.steps)
    apart = apart[apart > 0]
    usual = int(np.median(apart)) if len(apart) else 1
    if run.step_unit == "epoch" and usual == 1:
        yield "One record per epoch: problems that came and went within an epoch are not in the log."
    elif usual > 1 and run.step_unit != "ordinal":
        often = f"{'' if (apart == usual).all() else 'about '}every {usual} {run.step_unit}s"
        yield f"One record {often}: problems that came and went between two records are not in the log."
