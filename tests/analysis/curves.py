"""Training curves that never were: healthy ones of many kinds, and what can go wrong in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis import Analysis, analyze_source
from stabwatch.analysis.readers.log import Column, LogRun, Remark, Role
from stabwatch.analysis.readers.records import ForeignLog

Array = NDArray[np.float64]


def run_of(
    remarks: Sequence[Remark] = (), steps: Sequence[int] | None = None, name: str = "made", **columns: Sequence[float]
) -> LogRun:
    """A run from columns by role, or by a name given as `other__name`; None is a blank cell."""
    length = max(map(len, columns.values()), default=0)
    at = np.arange(length) if steps is None else np.asarray(steps)
    made = []
    for key, values in columns.items():
        role, _, called = key.partition("__")
        keep = [i for i, value in enumerate(values) if value is not None]
        made.append(
            Column(
                name=called or role,
                role=role,  # type: ignore[arg-type]
                steps=at[keep].astype(np.int64),
                values=np.array([values[i] for i in keep], dtype=np.float64),
                lines=np.array(keep, dtype=np.int64) + 1,
            )
        )
    lines = np.arange(1, len(at) + 1)
    return LogRun(name, tuple(made), at.astype(np.int64), lines, np.full(len(at), np.nan), remarks=tuple(remarks))


def analysed(run: LogRun, path: str = "made.log", notes: tuple[str, ...] = ()) -> Analysis:
    """What the one analysis says of a made-up log."""
    return analyze_source(ForeignLog(Path(path), run, "text", notes))


def falling(rng: np.random.Generator, length: int) -> Array:
    """A power law from a first loss down to a floor, as losses fall."""
    first, floor = rng.choice([0.7, 2.3, 7.0, 11.0]), rng.choice([0.001, 0.05, 0.3, 0.6])
    speed, power = rng.uniform(0.5, 30) / max(length, 30) * 10, rng.uniform(0.3, 1.2)
    return first * (floor + (1 - floor) * (1 + speed * np.arange(length)) ** -power)


def walk(rng: np.random.Generator, length: int, memory: float) -> Array:
    """A walk that comes back, of unit variance."""
    out, x = np.empty(length), 0.0
    for i, shock in enumerate(rng.standard_normal(length).tolist()):
        x = memory * x + (1 - memory**2) ** 0.5 * shock
        out[i] = x
    return out


def _normal(rng: np.random.Generator, clean: Array) -> Array:
    return clean * (1 + rng.uniform(0.001, 0.15) * rng.standard_normal(len(clean)))


def _heavy(rng: np.random.Generator, clean: Array) -> Array:
    return clean * np.exp(rng.uniform(0.05, 0.6) * rng.standard_normal(len(clean)))


def _student(rng: np.random.Generator, clean: Array) -> Array:
    return clean * (1 + np.abs(rng.uniform(0.01, 0.1) * rng.standard_t(2.0, len(clean))))


def _wandering(rng: np.random.Generator, clean: Array) -> Array:
    return clean * (1 + rng.uniform(0.01, 0.08) * walk(rng, len(clean), float(rng.choice([0.7, 0.9, 0.98, 0.99]))))


def _mixup(rng: np.random.Generator, clean: Array) -> Array:
    return (
        clean
        * np.where(rng.random(len(clean)) < 0.03, rng.uniform(1.3, 1.8), 1.0)
        * (1 + 0.03 * rng.standard_normal(len(clean)))
    )


def _bursts(rng: np.random.Generator, clean: Array) -> Array:
    """Bad batches: one to three records far above, about one in a hundred."""
    out = _normal(rng, clean)
    for i in np.flatnonzero(rng.random(len(clean)) < 0.015).tolist():
        out[i : i + int(rng.choice([1, 1, 1, 2, 3]))] *= rng.uniform(1.5, 20)
    return out


def _staircase(rng: np.random.Generator, clean: Array) -> Array:
    """Epochs: a drop at each, and a slow rise within."""
    epoch = max(len(clean) // 4, 2)
    within = (np.arange(len(clean)) % epoch) / epoch
    return _normal(rng, clean * 0.8 ** (np.arange(len(clean)) // epoch) * (1 + 0.05 * within))


def _cycles(rng: np.random.Generator, clean: Array) -> Array:
    """A learning rate that restarts: the loss saws."""
    period = max(len(clean) // 5, 8)
    phase = (np.arange(len(clean)) % period) / period
    return _normal(rng, clean * (1 + 0.12 * np.cos(np.pi * phase) ** 2 * (np.arange(len(clean)) > period)))


def _rounded(rng: np.random.Generator, clean: Array) -> Array:
    return np.round(_normal(rng, clean), int(rng.choice([2, 3, 4])))


def _negative(rng: np.random.Generator, clean: Array) -> Array:
    """Dice: from about 0 down to -0.9."""
    return clean / clean[0] - 1 + 0.03 * rng.standard_normal(len(clean))


def _flat(rng: np.random.Generator, clean: Array) -> Array:
    """Fine-tuning of what is finished."""
    return clean[0] / 3.1 * (1 + rng.uniform(0.02, 0.3) * rng.standard_normal(len(clean)) / 2)


def _hump(rng: np.random.Generator, clean: Array) -> Array:
    """No warm-up: up at first."""
    up = rng.uniform(0.5, 4) * np.exp(-np.arange(len(clean)) / rng.uniform(1, 10))
    up[: int(rng.integers(1, 4))] = 0
    return _normal(rng, clean * (1 + up))


HEALTHY: dict[str, Callable[[np.random.Generator, Array], Array]] = {
    "normal": _normal,
    "heavy": _heavy,
    "student": _student,
    "wandering": _wandering,
    "mixup": _mixup,
    "bursts": _bursts,
    "staircase": _staircase,
    "cycles": _cycles,
    "rounded": _rounded,
    "negative": _negative,
    "flat": _flat,
    "hump": _hump,
}


def lengths(rng: np.random.Generator) -> int:
    """From a few records to thousands."""
    return int(10 ** rng.uniform(0.7, 3.3))


def healthy(rng: np.random.Generator, family: str) -> LogRun:
    """A healthy run with a gradient norm of a heavy tail, a schedule, and a cadence that may change on the way."""
    length = lengths(rng)
    loss = HEALTHY[family](rng, falling(rng, length))
    norm = (1 + 10 * np.exp(-np.arange(length) / 20)) * np.exp(rng.uniform(0.1, 0.7) * rng.standard_normal(length))
    norm[rng.random(length) < 0.005] *= rng.uniform(3, 80)
    rate = np.minimum(np.arange(length) / max(length // 20, 1), 1) * (1 + np.cos(np.linspace(0, np.pi, length))) / 2
    steps = np.arange(length) * int(rng.choice([1, 10, 100]))
    if rng.random() < 0.3:
        half = length // 3
        steps[half:] = steps[half] + np.arange(length - half) * 500
    return run_of(
        steps=steps.tolist(), loss=loss.tolist(), grad_norm=norm.tolist(), learning_rate=(3e-4 * rate).tolist()
    )


def spiked(rng: np.random.Generator) -> tuple[LogRun, int]:
    """A spike that falls back over some 10 to 40 records, and its step."""
    length = int(rng.integers(150, 2000))
    clean = falling(rng, length) * 1.0
    loss = clean * (1 + rng.uniform(0.005, 0.05) * rng.standard_normal(length))
    at = int(rng.integers(length // 3, length - 60))
    after = np.arange(length - at)
    loss[at:] *= 1 + rng.uniform(1.0, 10) * np.exp(-after / rng.uniform(4, 12))
    return run_of(loss=loss.tolist()), at


def diverging(rng: np.random.Generator) -> tuple[LogRun, int]:
    """A rise without end, fast or slow, and the step where it begins."""
    length = int(rng.integers(100, 2000))
    loss = falling(rng, length) * (1 + rng.uniform(0.005, 0.05) * rng.standard_normal(length))
    at = int(rng.integers(length // 3, int(length * 0.8)))
    after = np.arange(length - at)
    loss[at:] *= 1 + rng.uniform(1.0, 8) * (1 - np.exp(-after / (len(after) * rng.uniform(0.01, 0.6))))
    return run_of(loss=loss.tolist()), at


ROLES: tuple[Role, ...] = ("loss", "eval_loss", "grad_norm", "learning_rate", "loss_scale", "throughput", "other")
