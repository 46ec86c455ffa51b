"""What clipping of gradients reports to a session: the norm before it, its limit, and a step that begins there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.flags import MeasurementFlags
from stabwatch.hooks.base.isolation import Isolation
from stabwatch.hooks.nonfinite import NonFiniteTrace
from stabwatch.runtime.host_numbers import HostNumbers
from stabwatch.runtime.loop_order import LoopOrder
from stabwatch.runtime.parameter_steps import ParameterSteps
from stabwatch.runtime.step_clock import StepClock
from stabwatch.runtime.taps import Taps


class ClipEvents:
    """Follows calls of functions that clip gradients."""

    context: TapContext
    flags: MeasurementFlags
    isolation: Isolation
    _asked: Callable[..., bool]
    _taps: Taps
    _clock: StepClock
    _host: HostNumbers
    _order: LoopOrder
    _nonfinite: NonFiniteTrace
    _parameter_steps: ParameterSteps
    _prepared: bool
    _repeated: bool
    _stepped_parameters: set[int]

    def _end_step(self) -> None:
        """The step of the run is over."""
        raise NotImplementedError

    def clips(self, parameters: Sequence[Tensor]) -> None:
        """`clip_grad_norm_` is about to scale the gradients: those that are not finite would spoil all others."""
        if self._clock.inside is None and self._asked(self._taps.now.parameters.owns, parameters):
            self.isolation.run("nonfinite", "always", self._nonfinite.gradients_complete, self.context.step)

    def clipped(
        self, parameters: Sequence[Tensor], norm: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """`clip_grad_norm_` was called: its norm is the gradient norm before clipping."""
        if not self._asked(self._taps.now.parameters.owns, parameters):
            return
        again = bool(self._stepped_parameters) and not self._stepped_parameters.isdisjoint(map(id, parameters))
        if again and self._clock.inside is None and not self._clock.numbered:
            self._repeated = True
            self._end_step()
        self.isolation.run("clip", "always", self._clipped, norm, args, kwargs)

    def _clipped(self, norm: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._prepared:
            self._taps.now.steps.gradients_ready(self._parameter_steps.optimizer)
        limit = kwargs.get("max_norm", args[0] if args else None)
        self._host.clipped(self._order.clipped(limit), limit)
        kind = kwargs.get("norm_type", args[1] if len(args) > 1 else 2.0)
        if float(kind) != 2.0:
            return
        self._taps.now.steps.clipped(norm)
        if self.flags.attached:
            self.context.run.update_clip(norm)

    def values_clipped(self, parameters: Sequence[Tensor], limit: float) -> None:
        """`clip_grad_value_` was called: no gradient is larger than its limit now."""
        if self._asked(self._taps.now.parameters.owns, parameters):
            self._host.clipped(self._order.clipped(limit), value=limit)
