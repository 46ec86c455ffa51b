"""The deep tier at the optimizer's step: direction of gradients and updates, Adam's moments, narrow formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from stabwatch.hooks.base.parameter_views import ParameterChange, ParameterGradient, ParameterWeight, WholeGradient
from stabwatch.hooks.base.probe import PROBES, Computation, Need, Probe, on
from stabwatch.hooks.base.sampling import ROUNDED, some_rows
from stabwatch.hooks.base.tensors import local
from stabwatch.kernels.direction import adam, direction, invariance, radial, together
from stabwatch.kernels.exponent_histogram import exponents
from stabwatch.kernels.merge import Aggregates
from stabwatch.kernels.precision import precisions, roundings
from stabwatch.signals.reductions import (
    ADAM,
    DESCENT,
    DIRECTION,
    EXPONENTS,
    INVARIANCE,
    PRECISION,
    RADIAL,
    ROUNDING,
    Reduction,
)

CLOSURE = "the optimizer computes gradients inside its step (a closure)"
SHARDED = "this rank has only a part of the matrix"
_GRADIENT = Need("gradient", CLOSURE)
Numbers: TypeAlias = ParameterWeight | ParameterGradient


def _formats(x: Numbers) -> Aggregates | None:
    return _all_formats([x])[0]


def _all_formats(views: Sequence[Numbers]) -> Sequence[Aggregates | None]:
    return _where_rows(views, precisions)


def _rounding(x: Numbers) -> Aggregates | None:
    return _all_rounding([x])[0]


def _all_rounding(views: Sequence[Numbers]) -> Sequence[Aggregates | None]:
    return _where_rows(views, lambda rows: roundings([some_rows(x, ROUNDED) for x in rows], rows))


def _where_rows(
    views: Sequence[Numbers], compute: Callable[[list[Tensor]], list[Tensor]]
) -> Sequence[Aggregates | None]:
    """What is computed from the rows of all views; None for one that has none."""
    rows = [x.rows for x in views]
    found = iter(compute([x for x in rows if x is not None]))
    return [None if x is None else next(found) for x in rows]


def _gradient_exponents(x: ParameterGradient) -> Aggregates | None:
    return None if x.rows is None else exponents(x.rows)


def _descent(x: ParameterGradient) -> Aggregates | None:
    return None if x.dense is None else _negated(direction(x.dense, x.weight))


def _whole_descent(x: WholeGradient) -> Aggregates:
    """Of everything that the optimizer steps, at every deep step: the cosine of the whole is no sum of parts."""
    assert x.gradients is not None
    return _negated(together(x.gradients, x.weights))


def _negated(aggregates: torch.Tensor) -> torch.Tensor:
    """Aggregates of `direction`, of minus the gradient."""
    aggregates[1].neg_()
    return aggregates


def _invariance(x: ParameterGradient) -> Aggregates | None:
    """Is the loss independent of the length of the weight? What is found is kept for the step."""
    weight, gradient = x.weight, x.gradient
    if gradient is None or weight.dim() < 2 or not weight.numel() or gradient.is_sparse:
        return None
    x.invariant = found = invariance(weight, gradient)
    size = torch.full((), float(weight.numel()), device=weight.device)
    return torch.stack((size, size * found.any()))


def _radial(x: ParameterChange) -> Aggregates | None:
    return None if x.invariant is None else radial(x.change, x.before, x.invariant)


def _adam(x: ParameterChange) -> Aggregates | None:
    """Of an optimizer that keeps Adam's moments."""
    state, group = x.state, x.group
    if not ({"exp_avg", "exp_avg_sq", "step"} <= state.keys() and {"eps", "betas"} <= group.keys()):
        return None
    betas = float(group["betas"][0]), float(group["betas"][1])
    return adam(local(state["exp_avg"]), local(state["exp_avg_sq"]), float(group["eps"]), state["step"], betas)


def _declare(
    name: str,
    tap: str,
    reduction: Reduction,
    compute: Computation,
    *needs: Need,
    optional: bool = False,
    reported_as: str = "",
) -> None:
    PROBES.register(
        Probe(
            name=name, tap=tap, reduction=reduction, tier="deep", compute=compute, needs=needs, round_robin=True,
            optional=optional, reported_as=reported_as,
        )
    )  # fmt: skip


_declare("precision", "weight", PRECISION, on(ParameterWeight, _formats, _all_formats), optional=True)
_declare("precision", "gradient", PRECISION, on(ParameterGradient, _formats, _all_formats), _GRADIENT, optional=True)
_declare("rounding", "weight", ROUNDING, on(ParameterWeight, _rounding, _all_rounding), optional=True)
_declare("rounding", "gradient", ROUNDING, on(ParameterGradient, _rounding, _all_rounding), _GRADIENT, optional=True)
_declare("exponents", "gradient", EXPONENTS, on(ParameterGradient, _gradient_exponents), _GRADIENT, optional=True)
_declare("descent", "gradient", DESCENT, on(ParameterGradient, _descent), _GRADIENT, optional=True)
_declare(
    "radial", "update", INVARIANCE, on(ParameterGradient, _invariance), _GRADIENT, Need("whole", SHARDED),
    optional=True, reported_as="radial",
)  # fmt: skip
_declare("radial", "update", RADIAL, on(ParameterChange, _radial), optional=True)
_declare("direction", "update", DIRECTION, on(ParameterChange, lambda x: direction(x.change, x.before)))
_declare("adam", "optimizer", ADAM, on(ParameterChange, _adam))
PROBES.register(
    Probe(
        name="descent", tap="step", reduction=DESCENT, tier="deep", compute=on(WholeGradient, _whole_descent),
        needs=(Need("gradients", CLOSURE),), optional=True,
    )
)  # fmt: skip
