"""Steps that no torch optimizer announces: they are seen at the parameters and their gradients."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from stabwatch.hooks.probes.trained_loss import TrainedLoss
from stabwatch.runtime.step_clock import torch_optimizers

AT_PARAMETERS = (
    "no torch optimizer announced its steps, so they are seen at the parameters: gradients are those after the last "
    "backward pass or `clip_grad_norm_`, and what needs the optimizer's state or rate is not measured"
)
_SEEN = (
    "seen at the parameters: gradients are those after the last backward pass or `clip_grad_norm_`, and what needs the "
    "moment before the step is not measured"
)
COMPILED_STEP = f"the optimizer's step is compiled, so it is {_SEEN}"
REPLACED_STEP = f"the optimizer's `step` was replaced by a function that torch does not announce, so it is {_SEEN}"
OTHER_STEP = f"the parameters are stepped by something else than the optimizer that holds them, so steps are {_SEEN}"
PATIENCE = 8
"""Movements of the parameters without a step of their optimizer, before they count as steps."""
SAMPLED, NUMBERS = 4, 16
"""Parameters on the host, and numbers of each, that are compared: writing to `p.data` leaves no other trace."""

_compiled = 0
"""How often a compiler has traced a step of an optimizer."""


def note_compiled() -> bool:
    """Note that a compiler traces a step of an optimizer. It is called while tracing; the graph gets the result."""
    global _compiled
    _compiled += 1
    return True


note_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


class AllParameters:
    """Stands in for an optimizer that is none of torch's: all trained parameters in one group."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": parameters}]
        self.state: dict[nn.Parameter, Any] = {}


class ParameterSteps:
    """Decides whether the parameters have been stepped without an announcement.

    given: optimizer as in `attach`; None for one whose steps are not those of the model.
    """

    def __init__(self, parameters: list[nn.Parameter], given: Any) -> None:
        self._holder: Optimizer | None = next(iter(torch_optimizers(given)), None)
        self._announced = False
        self._unannounced = 0
        self._compiled_before = _compiled
        self.follow(parameters)

    def follow(self, parameters: list[nn.Parameter]) -> None:
        """Look at these parameters from now on."""
        self._parameters = parameters
        self._searched = self._holder is not None
        self._sample: list[bytes] = []
        self._stand_in = AllParameters(parameters)
        host = [p for p in parameters if not is_lazy(p) and p.device.type == "cpu" and p.layout == torch.strided]
        self._host = sorted((p for p in host if type(p.data) is torch.Tensor and p.numel()), key=nn.Parameter.numel)[
            :SAMPLED
        ]

    @property
    def optimizer(self) -> Any:
        """The optimizer, or what replaces it."""
        return self._holder or self._stand_in

    @property
    def reason(self) -> str:
        """Why steps are seen at the parameters."""
        if self._holder is None:
            return AT_PARAMETERS
        if _compiled > self._compiled_before:
            return COMPILED_STEP
        return OTHER_STEP if _announces(self._holder) else REPLACED_STEP

    @property
    def active(self) -> bool:
        """Are steps seen at the parameters, and not at an optimizer?"""
        if self._unannounced > PATIENCE:
            return True
        if self._announced:
            return False
        return not self._has_holder() or _compiled > self._compiled_before or not _announces(self._holder)

    def announced(self) -> None:
        """An optimizer has announced a step."""
        self._announced, self._unannounced = True, 0

    def pass_ended(self) -> None:
        """A backward pass has reached the parameters."""
        if self.active:
            self._sample = self._numbers()

    def over(self, loss: TrainedLoss) -> bool:
        """Asked when a forward or backward pass begins: were the parameters stepped since the last backward pass?"""
        if not loss.reached_since_step:
            return False
        if not self.active:
            self._unannounced += loss.moved()
            return self._unannounced > PATIENCE
        if self._holder is not None:
            return loss.moved()
        return loss.moved() or loss.gone() or (bool(self._sample) and self._numbers() != self._sample)

    def _has_holder(self) -> bool:
        """Is there a torch optimizer that holds these parameters? Searched once, among all objects of the process."""
        if not self._searched:
            self._searched = True
            mine = {id(p) for p in self._parameters}
            for o in gc.get_objects():
                if issubclass(type(o), Optimizer) and mine & {id(p) for g in _groups(o) for p in g["params"]}:
                    self._holder = o
                    break
        return self._holder is not None

    @torch.no_grad()
    def _numbers(self) -> list[bytes]:
        host = (p.detach() for p in self._host if p.device.type == "cpu")
        return [p.reshape(-1)[:NUMBERS].view(torch.uint8).numpy().tobytes() for p in host]


def _announces(optimizer: Any) -> bool:
    """Does torch call its hooks around `step`? It wraps that of the class, and marks what it has wrapped.

    Of a function in its place that is not known: it may call the original.
    """
    return hasattr(getattr(optimizer, "step", None), "hooked")


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    return getattr(optimizer, "param_groups", None) or []
