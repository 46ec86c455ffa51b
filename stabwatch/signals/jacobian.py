"""The Jacobian of a model whose output has the shape of its input: one step of a map. Measured with `jacobian=True`.

A roll-out calls such a model on its own output. An error grows by at most the largest singular value in a step, and by
about that once it has turned into the first singular vector: the loss of one step says nothing of it.
"""

from __future__ import annotations

from stabwatch.signals.declaration import Signal


def _jacobian(name: str, help: str, formula: str, *fields: str, unit: str = "1") -> Signal:
    return Signal(
        name=name, help=help, unit=unit, tap="jacobian", reduction="jacobian", fields=fields, formula=formula,
        scope="run", tier="deep", source="JAWS, arXiv:2603.05538; Hoffman et al. 2019, arXiv:1908.02729",
    )  # fmt: skip


SIGNALS = (
    _jacobian(
        "jacobian_singular_value",
        "Largest singular value of the derivative of a model's output by its input, mean over samples; above 1 errors "
        "grow.",
        "mean", "value", "count",
    ),
    _jacobian(
        "jacobian_singular_value_max",
        "Largest singular value of the derivative of a model's output by its input, of the worst sample.",
        "same", "value_max",
    ),
    _jacobian(
        "jacobian_norm",
        "Frobenius norm of the derivative of a model's output by its input: |J v| of random vectors of signs.",
        "rms", "sumsq", "count",
    ),
    _jacobian(
        "jacobian_residual_ratio",
        "Relative residual of the iteration for the largest singular value of the Jacobian, of the worst sample.",
        "same", "residual", unit="ratio",
    ),
)  # fmt: skip
