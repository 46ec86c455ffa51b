"""Views of parameters at their optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.sampling import some_rows
from stabwatch.hooks.base.view import View


@dataclass(eq=False)
class ParameterView(View):
    """A parameter at its optimizer's step."""

    layer: str
    parameter: nn.Parameter

    @property
    def place(self) -> str:
        """Name of the layer: the parameters of one layer are merged."""
        return self.layer


@dataclass(eq=False)
class ParameterWeight(ParameterView):
    """Its weight before the step (this rank's shard)."""

    weight: Tensor

    @cached_property
    def rows(self) -> Tensor | None:
        """(N, D): some rows of it; None where it is empty."""
        return some_rows(self.weight) if self.weight.numel() else None


@dataclass(eq=False)
class ParameterGradient(ParameterView):
    """Its weight and gradient before the step (this rank's shards).

    gradient: None where the optimizer computes it inside its step (a closure). scale: the loss scale that a fused
    optimizer takes out inside its own kernel, if there is one. shape: that of the parameter on all ranks together.
    """

    weight: Tensor
    gradient: Tensor | None
    shape: torch.Size
    scale: Tensor | None = None
    invariant: Tensor | None = None
    """bool (2,), as the probe of scale invariance found it: for the probe that looks at the step."""

    @cached_property
    def dense(self) -> Tensor | None:
        """The gradient; None where it is sparse or empty."""
        g = self.gradient
        return None if g is None or g.is_sparse or not g.numel() else g

    @cached_property
    def rows(self) -> Tensor | None:
        """(N, D): some rows of the dense gradient, without the loss scale."""
        if self.dense is None:
            return None
        rows = some_rows(self.dense)
        return rows if self.scale is None else rows.float() / self.scale.to(rows.device, non_blocking=True)

    @property
    def whole(self) -> Tensor | None:
        """The weight; None where this rank has only a shard of it."""
        return self.weight if self.weight.shape == self.shape else None


@dataclass(eq=False)
class ParameterChange(ParameterView):
    """What the step did: weight after and `before` it, and their difference `change` in float32.

    state, group: the optimizer's, of this parameter. invariant: see `ParameterGradient`. last_change: some numbers of
    what the step before it changed, if they were kept.
    """

    only_in_turn: ClassVar[bool] = True

    weight: Tensor
    before: Tensor
    change: Tensor
    state: Mapping[str, Any]
    group: Mapping[str, Any]
    invariant: Tensor | None = None
    last_change: Tensor | None = None


@dataclass(eq=False)
class WholeGradient(View):
    """Gradients and weights of all parameters of one device that an optimizer steps; None for a closure."""

    gradients: Sequence[Tensor] | None
    weights: Sequence[Tensor]


PARAMETER_VIEWS: tuple[type[ParameterView], ...] = (ParameterWeight, ParameterGradient, ParameterChange)
