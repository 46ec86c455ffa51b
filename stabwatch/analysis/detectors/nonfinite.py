"""NaN and infinity: printed, left blank, missing from the line, replaced by 0.0, or named in a message."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stabwatch.alerts.incidents import Incident
from stabwatch.alerts.rule import Severity
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.nonfinite_told import counted, in_messages
from stabwatch.analysis.detectors.robust import spans
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import number_of
from stabwatch.analysis.readers.log import Column, Role
from stabwatch.analysis.readers.names import is_eval, is_of_policy, is_perplexity, is_trained, role_of

MISSED = 5
"""A loss is missing after this multiple of the usual number of records between two losses."""
FEWEST_RECORDS = 3
"""Fewest losses that show how often one is printed, and fewest records without one that show its absence."""
EXPLODED = 10
"""Multiple of its median from which a value before the first NaN is told."""
MANY = 3
"""Fewest records with a non-finite gradient norm that are more than skipped steps."""

_OF_TRAINING: tuple[Role, ...] = (
    "grad_norm",
    "learning_rate",
    "loss_scale",
    "skipped_steps",
    "nan_steps",
    "step_seconds",
    "throughput",
)
"""Columns that training records have and evaluation records do not have."""


def find(segment: RunSegment) -> list[Incident]:
    """Incidents by the place of the NaN. Strong evidence hides weaker evidence of the same thing."""
    found = [*_printed(segment)]
    blank: list[Incident] = []
    if not segment.watched:
        found += list(_filtered(segment)) or _filtered_beside_validation(segment)
        blank += list(_vanished(segment)) or _blank_for_a_while(segment)
    if not found:
        found = blank
    elif blank and found[-1].last_step is None:
        found[-1] = replace(found[-1], evidence=(*found[-1].evidence, blank[0].text))
    if not found:
        found = [*counted(segment), *in_messages(segment)]
    found = _after_norm(segment, _after_validation(segment, found))
    return [*found, *_elsewhere(segment, bool(found)), *_beside_the_loss(segment)]


def _printed(segment: RunSegment) -> Iterator[Incident]:
    loss = segment.loss
    if loss is not None:
        yield from _of_column(segment, loss, segment.loss_name, "critical")


def _of_column(segment: RunSegment, column: Column, name: str, severity: str) -> Iterator[Incident]:
    bad = ~np.isfinite(column.values)
    if not bad.any():
        return
    runs = spans(bad)
    a = runs[0][0]
    total, ended = int(bad.sum()), runs[-1][1] < len(bad)
    word = "NaN" if np.isnan(column.values[a]) else "infinite"
    if a == 0 and len(runs) == 1 and len(bad) - total >= FEWEST_RECORDS:
        yield _before_learning(column, name, word, total)
        return
    yield Incident(
        condition="NonFinite",
        signal=column.name,
        severity="warning" if severity == "critical" and ended and total <= 2 else severity,  # type: ignore[arg-type]
        first_step=int(column.steps[a]),
        last_step=int(column.steps[runs[-1][1] - 1]) if ended else None,
        records=total,
        confidence="certain",
        line=int(column.lines[a]),
        text=f"The {name} is {word} at step {column.steps[a]}, {_course(column, runs, total)}.",
        evidence=_before(column, a),
    )


def _before(column: Column, end: int) -> tuple[str, ...]:
    """The last finite value before a record, and the largest if it is far from the others."""
    finite = np.flatnonzero(np.isfinite(column.values[:end]))
    if not len(finite):
        return ("No value before it is finite." if np.isfinite(column.values).any() else "It was never finite.",)
    values = np.abs(column.values[finite])
    peak, usual = finite[np.argmax(values)], float(np.median(values))
    told = [f"Last finite value before: {column.values[finite[-1]]:.4g}."]
    if len(finite) > 2 and column.role in ("loss", "eval_loss") and values.max() > EXPLODED * usual > 0:
        told.append(
            f"Largest before: {column.values[peak]:.4g} at step {column.steps[peak]}; the median is {usual:.4g}."
        )
    return tuple(told)


def _before_learning(column: Column, name: str, word: str, total: int) -> Incident:
    """Only the first records are not finite. A NaN that reaches the weights would remain."""
    return Incident(
        condition="NonFinite",
        signal=column.name,
        severity="info",
        first_step=int(column.steps[0]),
        last_step=int(column.steps[total - 1]),
        records=total,
        confidence="certain",
        line=int(column.lines[0]),
        text=(
            f"The {name} is {word} in the first {number_of(total) if total > 1 else 'record'}, up to step "
            f"{column.steps[total - 1]}, and finite afterwards: nothing was trained yet, or those steps were skipped."
        ),
    )


def _after_validation(segment: RunSegment, found: list[Incident]) -> list[Incident]:
    """The same incidents. If the validation loss was NaN before the first one, that is its evidence and its step."""
    first = found[0] if found else None
    if first is None or first.last_step is not None or segment.loss is None:
        return found
    finite = segment.loss.steps[np.isfinite(segment.loss.values)]
    for column in (c for c in segment.columns if c.role == "eval_loss" and c is not segment.loss and len(c)):
        bad = np.flatnonzero(~np.isfinite(column.values))
        if not len(bad) or not (~np.isfinite(column.values[bad[0] :])).all():
            continue
        step = int(column.steps[bad[0]])
        if step >= first.first_step or (finite > step).any():
            continue
        told = f"The validation loss ('{column.name}') is NaN from step {step}, before that."
        line = int(column.lines[bad[0]])
        return [replace(first, first_step=step, line=line, text=f"{first.text} {told}"), *found[1:]]
    return found


def _after_norm(segment: RunSegment, found: list[Incident]) -> list[Incident]:
    """The same incidents; a gradient norm that was not finite before the first one is part of its evidence."""
    norm = segment.of("grad_norm")
    bad = np.empty(0, np.int64) if norm is None else norm.steps[~np.isfinite(norm.values)]
    if norm is None or not found or not found[0].is_problem or not len(bad) or bad[0] >= found[0].first_step:
        return found
    told = f"The gradient norm ('{norm.name}') was not finite at step {bad[0]}, before that."
    return [replace(found[0], evidence=(*found[0].evidence, told)), *found[1:]]


def _course(column: Column, runs: list[tuple[int, int]], total: int) -> str:
    """What follows the first non-finite value. runs: the spans of such values. total: their number."""
    if runs[0][1] == len(column):
        return f"and remains non-finite in the {number_of(total)} up to the end" if total > 1 else "in its last record"
    last = runs[-1][1] - 1
    course = f"in {number_of(total)}" + (f", the last of them at step {column.steps[last]}" if total > 1 else "")
    return course + (", and is finite again afterwards" if last + 1 < len(column) else ", where the log ends")


def _filtered(segment: RunSegment) -> Iterator[Incident]:
    """Hugging Face's trainer prints a loss of 0.0 instead of NaN; the gradient norm of the same record shows it."""
    loss, norm = segment.of("loss"), segment.of("grad_norm")
    if loss is None or norm is None:
        return
    _, mine, its = np.intersect1d(loss.steps, norm.steps, return_indices=True)
    hidden = (loss.values[mine] == 0) & ~np.isfinite(norm.values[its])
    if not hidden.any():
        return
    at = mine[hidden]
    yield Incident(
        condition="NonFinite",
        severity="critical",
        first_step=int(loss.steps[at[0]]),
        last_step=int(loss.steps[at[-1]]) if at[-1] < len(loss) - 1 else None,
        records=len(at),
        confidence="certain",
        line=int(loss.lines[at[0]]),
        text=(
            f"The loss is NaN from step {loss.steps[at[0]]}, although the log has 0.0: the gradient norm of the "
            f"same record is not finite, and the trainer filters NaN out of the printed loss."
        ),
        evidence=(f"{number_of(len(at))} with loss 0.0 and a non-finite gradient norm.",),
    )


def _filtered_beside_validation(segment: RunSegment) -> Iterator[Incident]:
    """The same without a gradient norm: the loss is exactly 0.0, and each validation loss from then on is NaN."""
    loss, norm = segment.of("loss"), segment.of("grad_norm")
    if loss is None or norm is not None or not len(loss) or loss.values[-1] != 0:
        return
    start = spans(loss.values == 0)[-1][0]
    step, points = int(loss.steps[start]), len(loss) - start
    later = [c.values[c.steps >= step] for c in segment.columns if c.role == "eval_loss"]
    if not any(len(values) for values in later) or not all(np.isnan(values).all() for values in later):
        return
    text = (
        f"The loss is NaN from step {step}, although the log has 0.0: the validation loss from then on is NaN, "
        f"and the trainer filters NaN out of the printed training loss."
    )
    evidence = (
        f"{number_of(points)} with loss 0.0 up to the end, {number_of(sum(map(len, later)), 'validation')} with NaN."
    )
    yield to_the_end(loss, start, text, condition="NonFinite", severity="critical", evidence=(evidence,))


def _vanished(segment: RunSegment) -> Iterator[Incident]:
    """The loss was in every training record, and then in none, while training continues."""
    loss = segment.of("loss")
    if loss is None or len(loss) < FEWEST_RECORDS:
        return
    beside = _beside(segment, loss)
    if beside is None:
        return
    later = beside.steps[beside.steps > loss.steps[-1]]
    shared = np.isin(beside.steps, loss.steps)
    usual = np.diff(np.flatnonzero(shared)).max(initial=1)
    if len(later) < (FEWEST_RECORDS if usual == 1 else MISSED * int(usual)) or _evaluated(segment, int(loss.steps[-1])):
        return
    step = int(later[0])
    yield Incident(
        condition="NonFinite",
        severity="critical",
        first_step=step,
        last_step=None,
        records=len(later),
        confidence="likely",
        line=int(beside.lines[beside.steps == step][0]),
        text=(
            f"The loss is missing from step {step} while the records continue ('{beside.name}' to step "
            f"{later[-1]}): most likely a NaN that the log leaves blank."
        ),
        evidence=(
            f"Up to step {loss.steps[-1]} it was in every {'record' if usual == 1 else f'{usual} records'}, the last "
            f"time as {loss.values[-1]:.4g}.",
            f"{number_of(len(later))} without it follow.",
        ),
    )


def _blank_for_a_while(segment: RunSegment) -> Iterator[Incident]:
    """The loss is in every training record except a few in a row."""
    loss = segment.of("loss")
    if loss is None or len(loss) < MISSED or len(np.unique(segment.steps)) < len(segment.steps):
        return
    missing = [(a, b) for a, b in spans(~np.isin(segment.steps, loss.steps)) if b < len(segment.steps)]
    a, b = max(missing, key=lambda run: run[1] - run[0], default=(0, 0))
    if len(missing) > MANY or b - a < FEWEST_RECORDS or a < MISSED:
        return
    yield Incident(
        condition="NonFinite",
        severity="warning",
        first_step=int(segment.steps[a]),
        last_step=int(segment.steps[b - 1]),
        records=b - a,
        confidence="possible",
        line=int(segment.lines[a]),
        text=(
            f"The loss is missing in {b - a} records in a row, from step {segment.steps[a]} to "
            f"{segment.steps[b - 1]}, and is in the others: possibly NaN that the log leaves blank."
        ),
    )


def _evaluated(segment: RunSegment, step: int) -> bool:
    """Whether evaluations after a step gave finite losses, which a model with NaN cannot."""
    later = [c.values[c.steps > step] for c in segment.columns if c.role == "eval_loss"]
    return any(len(values) > 1 and bool(np.isfinite(values[-2:]).all()) for values in later)


def _beside(segment: RunSegment, loss: Column) -> Column | None:
    """Another column of the training records that continues after the loss; the rarest one, which is the safest."""
    seen = [
        column
        for column in segment.columns
        if column is not loss
        and column.role in _OF_TRAINING
        and len(column)
        and column.steps[-1] > loss.steps[-1]
        and np.isin(loss.steps, column.steps).mean() > 0.9
    ]
    if (
        not seen
        and len(segment.steps)
        and segment.steps[-1] > loss.steps[-1]
        and np.isin(loss.steps, segment.steps).all()
    ):
        return Column("step", "other", segment.steps, segment.steps.astype(np.float64), segment.lines)  # blank rows
    return min(seen, key=lambda column: int((column.steps > loss.steps[-1]).sum()), default=None)


def _elsewhere(segment: RunSegment, known: bool) -> Iterator[Incident]:
    """The validation loss and the gradient norm, if the loss is finite."""
    if known:
        return
    for column in segment.columns:
        if column.role == "eval_loss" and column is not segment.loss:
            yield from _of_column(segment, column, f"validation loss ('{column.name}')", "warning")
    for column in _trained(segment):
        yield from _of_column(segment, column, f"'{column.name}'", "critical")
    yield from _perplexity(segment)
    norm = segment.of("grad_norm")
    if norm is not None:
        bad = ~np.isfinite(norm.values)
        many = _many(bad & ~_skipped(segment, norm.steps)) or _at_the_end(bad)
        yield from _of_column(segment, norm, "gradient norm", "warning" if many else "info")


def _skipped(segment: RunSegment, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which steps the gradient scaler skipped. Known of a watched run: elsewhere the column may count all so far."""
    skipped = segment.of("skipped_steps") if segment.watched else None
    return np.zeros(len(steps), bool) if skipped is None else np.isin(steps, skipped.steps[skipped.values > 0])


def _perplexity(segment: RunSegment) -> Iterator[Incident]:
    """A perplexity that is infinite up to the end, while the loss, its logarithm, is finite and does not fall."""
    for column in segment.columns:
        loss = segment.of("eval_loss") if is_eval(column.name) else segment.finite_loss
        if column is segment.loss or column.role == "eval_loss" or not is_perplexity(column.name) or not len(column):
            continue
        last = spans(np.isinf(column.values))[-1:]
        if not last or last[0][1] < len(column) or last[0][1] - last[0][0] < 2 or loss is None:
            continue
        a, points = last[0][0], len(column) - last[0][0]
        mine = loss.values[loss.steps >= column.steps[a]]
        falls = not len(mine) or mine[-1] < mine[0]
        text = (
            f"The perplexity ('{column.name}') is infinite in the {number_of(points)} from step {column.steps[a]} "
            f"to the end: the loss is too large for an exponential"
        )
        text += "." if falls else f", and does not fall ({mine[0]:.4g} to {mine[-1]:.4g})."
        severity: Severity = "info" if falls or not segment.must_fall else "warning"
        yield to_the_end(column, a, text, condition="NonFinite", severity=severity, signal=column.name)


def _beside_the_loss(segment: RunSegment) -> Iterator[Incident]:
    """Other columns together, as information: a NaN there is often a mean over nothing."""
    trained = _trained(segment)
    others = [
        c
        for c in segment.columns
        if c.role in ("component", "other") and not any(c is t for t in trained) and np.isnan(c.values).any()
    ]
    if not others:
        return
    lost = [c for c in others if not is_of_policy(c.name) and _lost(c)]
    grave = segment.loss is None and len(lost) > 1  # in a log without a loss, its parts may have names of their own
    first = min(others, key=lambda c: int(c.steps[np.argmax(np.isnan(c.values))]))
    at = int(np.argmax(np.isnan(first.values)))
    names = ", ".join(f"'{c.name}'" for c in others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
    yield Incident(
        condition="NonFinite",
        severity="warning" if grave else "info",
        first_step=int(first.steps[at]),
        last_step=None,
        records=max(int(np.isnan(c.values).sum()) for c in others),
        confidence="possible",
        line=int(first.lines[at]),
        text=f"{'NaN in columns other than the loss' if segment.loss is not None else 'NaN'}: {names}, from step "
        f"{first.steps[at]}.",
    )


def _lost(column: Column) -> bool:
    """Whether a column ends in NaN and was finite before, or is NaN in all of some records."""
    return bool(np.isnan(column.values[-1]) and (np.isfinite(column.values).any() or len(column) >= FEWEST_RECORDS))


def _trained(segment: RunSegment) -> list[Column]:
    """Other losses that are trained: a critic's, a policy's, another total, or all parts if no total is logged."""
    total = segment.loss is not None and role_of(segment.loss.name) != "component"
    columns = [c for c in segment.columns if c.role == "component" and c is not segment.loss]
    return [c for c in columns if is_trained(c.name) or not total or role_of(c.name) == "loss"]


def _many(bad: NDArray[np.bool_]) -> bool:
    """Whether there are more non-finite records than the steps that a gradient scaler skips one by one."""
    longest = max((b - a for a, b in spans(bad)), default=0)
    return longest >= MANY or _at_the_end(bad)


def _at_the_end(bad: NDArray[np.bool_]) -> bool:
    return bool(bad[-1] and len(bad) > 1 and bad[-2:].all())
