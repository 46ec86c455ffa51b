"""Train the cases, each once: a run log and the losses, of the run and of its twin without the fault."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.detection.case import STEPS, Case, Make
from benchmarks.detection.healthy import HEALTHY
from benchmarks.detection.unstable import UNSTABLE
from benchmarks.zoo import train
from stabwatch.runlog import Run, read_run

SEEDS = {"A": (0, 1), "B": (10, 11)}
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Trained:
    """A run that has been trained, and its twin: the same without the fault; a healthy run has none.

    losses, twin: (steps,).
    """

    case: Case
    seed: int
    log: Run
    losses: Array
    twin_log: Run | None = None
    twin: Array = field(default_factory=lambda: np.empty(0))


def trained(case: Case, seed: int, folder: Path) -> Trained:
    """Train, unless it has been; gives what was kept."""
    run = _kept(case.make, seed, folder / f"{case.name}-{seed}")
    if case.twin is None:
        return Trained(case, seed, *run)
    twin = getattr(case.twin, "__name__", f"{case.name}-twin")  # several may have the same, and it may be a case itself
    return Trained(case, seed, *run, *_kept(case.twin, seed, folder / f"{twin}-{seed}"))


def _kept(make: Make, seed: int, path: Path) -> tuple[Run, Array]:
    losses = path.with_suffix(".json")
    if not losses.exists():
        losses.write_text(json.dumps(train(make, seed, path, STEPS, every_step=True)))
    return read_run(path), np.array(json.loads(losses.read_text()), dtype=np.float64)


def pairs(half: str, seeds: int = 2) -> list[tuple[Case, int]]:
    """Cases of a half with the first of its seeds, unstable ones first."""
    return [(case, seed) for case in (*UNSTABLE, *HEALTHY) if case.half == half for seed in SEEDS[half][:seeds]]


SMOOTH = 16
VISIBLE = 0.1


def hurt(run: Trained) -> int | None:
    """First step from which the loss is visibly worse than without the fault; None if that never happens.

    Worse: not finite; or a tenth of what the twin has learned so far (of half its first loss, at least) above the twin.
    After an injected fault: at this step and in the median of 8. Else: from this step to the end, in medians of 32.
    Looks back from the end, so that it is earlier than anybody who has only the loss could say so.
    """
    if not len(run.twin):
        return None
    bad = ~np.isfinite(run.losses)
    if run.case.fault is None:
        worse = bad | _worse(run, 32)
        fine = np.flatnonzero(~worse)
        start = int(fine[-1]) + 1 if len(fine) else 0
    else:
        worse = bad | (_worse(run, 8) & (run.losses > run.twin))
        after = np.flatnonzero(worse[run.case.fault :])
        start = run.case.fault + int(after[0]) if len(after) else len(worse)
    return start if start < len(worse) else None


def _worse(run: Trained, ahead: int) -> NDArray[np.bool_]:
    """At each step, over the steps from it on."""
    first, out = float(np.median(run.twin[:SMOOTH])), np.zeros(len(run.losses), dtype=bool)
    for step in range(len(run.losses)):
        now, twin = run.losses[step : step + ahead], run.twin[step : step + ahead]
        gained = max(first - float(np.median(twin)), 0.5 * abs(first))
        out[step] = np.median(now - twin) > VISIBLE * gained
    return out
