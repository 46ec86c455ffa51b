"""What a training log cannot show, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.readers.log import LogRun

SHORT = 20
"""Records without which slow trouble cannot be told from noise."""


def limitations(run: LogRun, stretches: Sequence[RunSegment]) -> Iterator[str]:
    """One sentence for each thing."""
    if run.of("loss") is None:
        other = run.of("eval_loss")
        yield (
            "No training loss in this log."
            if other is None
            else f"No training loss in this log: '{other.name}', a validation loss, was judged in its place."
        )
    norm = run.of("grad_norm")
    if norm is None:
        yield "No gradient norm in this log: whether it rose before the loss did cannot be said."
    elif len(norm) and not norm.values.any():
        yield "The gradient norm is 0 in every record: it was not measured."
    if run.of("learning_rate") is None:
        yield "No learning rate in this log: its part in anything above cannot be said."
    if not _timed(run):
        yield "No times in this log: slow steps and stops would not be seen."
    yield from _sparse(run)
    if any(part.loss is not None and not part.must_fall for part in stretches):
        yield "Reinforcement learning or adversarial training by its columns: whether the loss falls was not judged."
    yield "Nothing by layer, as in every log of a trainer: where in the model it began cannot be said."


def _timed(run: LogRun) -> bool:
    return bool(np.isfinite(run.times).any()) or run.of("step_seconds") is not None or run.of("throughput") is not None


def _sparse(run: LogRun) -> Iterator[str]:
    if run.step_unit == "ordinal":
        yield "No step in this log: its records were numbered."
    if not len(run.steps):
        return
    if len(run.steps) < SHORT:
        yield f"{len(run.steps)} records only: a slow rise or a standstill cannot be told from noise."
    apart = np.diff(run.steps)
    apart = apart[apart > 0]
    usual = int(np.median(apart)) if len(apart) else 1
    if run.step_unit == "epoch":
        yield "One record an epoch: what came and went within one is not in the log."
    elif usual > 1 and run.step_unit == "step":
        yield f"One record in {usual} steps: what came and went between two is not in the log."
