"""Signals over kinds of parallelism: how far each is from its value in one process, on the same global batches."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import table
from stabwatch.runlog import Run, read_run
from stabwatch.signals import CATALOGUE

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "parallel.json"
MODES = {
    "ddp": 2, "zero": 2, "replicate": 2, "manual": 2, "compiled": 2, "fsdp1": 2, "fsdp1_flat": 2, "fsdp2": 2, "hsdp": 4,
    "tp": 2, "tp_sequence": 2, "tp_loss": 2, "2d": 4, "2d_sequence": 4, "1f1b": 2, "gpipe": 2, "1f1b_fsdp": 4,
    "1f1b_ddp": 4, "interleaved": 2, "zero_bubble": 2, "v": 2, "fsdp2_accumulates": 2,
}  # fmt: skip
"""Name in tests/distributed/placement_job.py -> number of processes."""
STEPS = 48
EQUAL = 2e-5
"""Relative distance up to which values are equal: float32 sums in another order."""
LEFT_OUT = ("host", "logged", "rank_busy", "rank_loss", "rank_nonfinite", "replica")
"""Taps that are of rank 0's host, or compare ranks."""

HEAD = """## Kinds of parallelism

Each signal against its value in one process that trains the same model on the same global batches, over all layers and
{steps} steps, with every step measured. Gloo on the CPU; the number is that of the processes.

- **=**: equal, within {equal:g} of the value (float32 sums in another order). A number: the largest relative distance.
- **own**: measured at other steps than in the single process, because a deep signal is measured in turn; not compared.
- **–**: not measured; the reasons are below the table.

`manual` is an all-reduce of gradients by hand, `compiled` is `torch.compile` of DistributedDataParallel, `fsdp1_flat`
is without `use_orig_params`, `2d` is FSDP2 over tensor parallelism, `_sequence` is with sequence parallelism
(`tp_sequence` adds up two micro-batches), `tp_loss` also splits the classes of the loss over ranks, `fsdp2_accumulates`
leaves out the first of two gradient synchronisations; `interleaved`, `zero_bubble` and `v` have two stages on each
rank. Some differ by their nature: tokens of the residual stream are drawn within the batch of each rank, and the
gradients of activations and of a writer's modes are those of the loss of that batch. Gradients of norms under
`tp_sequence` are sums over ranks: equal as long as their numbers fit into a record beside all else (a megabyte that a
rank receives), else estimated from sketches, which the run says, with the standard deviation (docs/design.md, Ranks).
"""


@dataclass
class Mode:
    """Results of one mode. signals: state by signal. reasons: what its coverage report says."""

    name: str
    world: int
    signals: dict[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def run() -> list[Mode]:
    """Train all modes, and keep the results."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [f"{name}:{world}" for name, world in {"single": 1, **MODES}.items()]
        environment = {**os.environ, "PLACEMENT_STEPS": str(STEPS)}
        command = [sys.executable, "-m", "tests.distributed.placement_job", folder, *jobs]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        single = read_run(Path(folder) / "single")
        modes = [compared(name, world, read_run(Path(folder) / name), single) for name, world in MODES.items()]
    RESULTS.write_text(json.dumps([asdict(mode) for mode in modes], indent=1) + "\n", encoding="utf-8")
    return modes


def load() -> list[Mode]:
    """The results that are kept."""
    return [Mode(**entry) for entry in json.loads(RESULTS.read_text(encoding="utf-8"))] if RESULTS.exists() else []


def compared(name: str, world: int, job: Run, single: Run) -> Mode:
    """A mode against the single process."""
    distances: dict[str, list[float | None]] = {}
    for key in single.keys:
        if key.signal in CATALOGUE and CATALOGUE[key.signal].tap not in LEFT_OUT:
            here, there = (_values(each, key.signal, key.layer) for each in (job, single))
            if there:
                distances.setdefault(key.signal, []).append(_distance(here, there))
    mode = Mode(name, world, {signal: _state(found) for signal, found in distances.items()})
    reports = [event.data for event in job.events if event.kind == "coverage"]
    entries: list[Mapping[str, Any]] = [*reports[-1]["unmeasured"], *reports[-1]["notes"]] if reports else []
    mode.reasons = list(dict.fromkeys(f"{entry['tap']}: {entry['reason']}" for entry in entries))
    return mode


def _values(run: Run, signal: str, layer: str) -> dict[int, float]:
    steps, values = run.series(signal, layer)
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def _distance(here: Mapping[int, float], there: Mapping[int, float]) -> float | None:
    """The largest relative distance; None where nothing is measured, NaN where nothing is at the same step."""
    if not here:
        return None
    steps = sorted(here.keys() & there.keys())
    if not steps:
        return math.nan
    a, b = (np.array([run[step] for step in steps]) for run in (here, there))
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b) / np.maximum(np.abs(b), 1e-6))
    return float(np.nanmax(apart, initial=0.0))


def _state(found: list[float | None]) -> str:
    known = [x for x in found if x is not None and not math.isnan(x)]
    if all(x is None for x in found):
        return "–"
    if not known:
        return "own"
    partly = (
        "" if all(x is not None for x in found) else f" ({sum(x is not None for x in found)} of {len(found)} layers)"
    )
    return ("=" if max(known) <= EQUAL else f"{max(known):.0e}") + partly


def section(modes: list[Mode]) -> str:
    """Of the page."""
    if not modes:
        return ""
    signals = [s.name for s in CATALOGUE if any(s.name in mode.signals for mode in modes)]
    rows = [(f"`{signal}`", *(mode.signals.get(signal, "–") for mode in modes)) for signal in signals]
    head = ("signal", *(f"{mode.name} {mode.world}" for mode in modes))
    by_reason: dict[str, list[str]] = {}
    for mode in modes:
        for reason in mode.reasons:
            by_reason.setdefault(reason, []).append(mode.name)
    lines = [f"- {reason.replace('|', ' ')} ({', '.join(names)})" for reason, names in by_reason.items()]
    said = "\n".join(lines)
    return f"{HEAD.format(steps=STEPS, equal=EQUAL)}\n{table(head, rows)}\n\nNot measured, and why:\n\n{said}\n"
