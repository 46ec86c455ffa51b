"""Modules that are called several times in one forward: a looped core, shared layers, a recurrent cell.

One series for each call, named `module[call]`; from the 33rd call on, calls share series, four for each doubling.
"""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Signal

_SOURCE = "Parcae, sandyresearch/parcae parcae_lm/models/parcae/parcae.py"


def _loop(name: str, help: str, reduction: str, formula: str, *fields: str, **more: Any) -> Signal:
    return Signal(
        name=name, help=help, unit=more.pop("unit", "1"), tap="loop", reduction=reduction, fields=fields,
        formula=formula, source=_SOURCE, **more,
    )  # fmt: skip


SIGNALS = (
    _loop(
        "loop_output_rms",
        "Root mean square of the output of one call of a module that a forward calls several times.",
        "moments", "rms", "sumsq", "count", "nonfinite",
    ),
    _loop(
        "loop_step_ratio",
        "Distance of the output of one call to that of the call before it, over the norm of the output.",
        "loop_step", "relative_norm", "change_sumsq", "sumsq", unit="ratio", tier="deep",
    ),
    _loop(
        "loop_growth",
        "Least-squares slope of ln(output RMS) over the calls of one module in a forward, per call.",
        "depth", "quotient", "rise", "spread",
    ),
    _loop(
        "loop_gain_ratio",
        "Root mean square of the last output of a module in a forward over that of its first one.",
        "loop_gain", "rms_ratio", "sumsq", "count", "first_sumsq", "first_count", unit="ratio",
    ),
    _loop(
        "loop_nonfinite_total",
        "Elements of the output of one call of a module that were NaN or infinite.",
        "moments", "total", "nonfinite", kind="counter",
    ),
)  # fmt: skip
