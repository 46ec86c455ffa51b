"""The definitions, in float64.

Along a step the linearised logits are z + t a, and the loss is log sum exp(z + t a) minus a linear part. It is analytic
up to the nearest complex zero of the partition function sum_k exp(z_k + t a_k): that distance is the radius.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor


def ratio(rates: Tensor, logits: Tensor) -> float:
    """One sample: rates a (K,) per unit of the step, logits z (K,) -> 1 / radius in units of the step.

    Two classes: exactly |a_1 - a_2| / sqrt((z_1 - z_2)^2 + pi^2). More: (max a - min a) / pi, an upper bound.
    Classes whose logit is -inf are left out.
    """
    a, z = rates.double(), logits.double()
    spread = float(a[z > -math.inf].max() - a[z > -math.inf].min())
    if len(a) == 2:
        return spread / math.sqrt(float(z[1] - z[0]) ** 2 + math.pi**2)
    return spread / math.pi


def rates_by_difference(
    function: Callable[[dict[str, Tensor]], Tensor],
    parameters: dict[str, Tensor],
    step: dict[str, Tensor],
    size: float = 1e-4,
) -> Tensor:
    """Central difference of `function(parameters)` along `step`, per unit of the step; float64 throughout."""
    up, down = (
        function({name: p.double() + sign * size * step[name].double() for name, p in parameters.items()})
        for sign in (1, -1)
    )
    return (up - down) / (2 * size)
