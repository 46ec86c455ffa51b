"""The forwards of a model since its last backward pass: when each part of it ran, by the numbers of autograd's nodes.

Autograd numbers its nodes in the order in which they are made. The first and the last number of a call say which
nodes are its own, at no cost; nothing else is kept of a call. Numbers of the calls of modules are only noted in steps
in which their hooks are there. A later forward of the same length has the same calls at the same places.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.tensors import tensors_in

SMALL = 1 << 16
"""Numbers up to which an output is kept until the loss is known; of a larger one its sum is."""
MOST_FORWARDS = 64
"""Forwards without a backward pass of which anything is kept."""
PLAIN = (Tensor, nn.Parameter)

_number: Any = getattr(torch._C._autograd, "_get_sequence_nr", None)


@dataclass(frozen=True)
class Call:
    """One call of a watched module: the numbers of its nodes are at least `start` and below `end`."""

    name: str
    start: int
    end: int


@dataclass
class Kept:
    """An output of the model, or its sum. version: of the output when it was returned."""

    value: Tensor
    version: int
    summed: bool

    @property
    def finite(self) -> bool | None:
        """Were its numbers neither NaN nor +inf? None if something wrote into it afterwards."""
        return not spoiled(self.value) if self.summed or self.value._version == self.version else None


@dataclass
class Forward:
    """One forward of the model; end: -1 while it runs. outputs: without losses that the model computes itself."""

    start: int
    inputs: tuple[Any, ...]
    end: int = -1
    outputs: list[Kept] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    own_loss: bool = False

    @property
    def finite(self) -> bool | None:
        """Were all outputs finite? None if that is not known."""
        known = [kept.finite for kept in self.outputs]
        if False in known:
            return False
        return True if known and None not in known else None


class ForwardTrace:
    """The forwards of one model since its last backward pass. On the host alone."""

    def __init__(self) -> None:
        self.forwards: list[Forward] = []
        self.pattern: tuple[Call, ...] = ()
        """The calls of the last forward whose modules had hooks, from 0 on."""
        self.inputs: tuple[Any, ...] = ()
        """Those of the last forward, until the step is taken."""
        self.length = 0
        """Nodes of that forward."""
        self._now: Forward | None = None
        self._open: list[tuple[str, int]] = []
        self._part_end: int | None = None

    def begins(self, inputs: tuple[Any, ...], device: torch.device) -> None:
        """A training forward begins."""
        self._now, self._open, self._part_end = None, [], None
        if _number is None or device.type != "cpu":
            return
        if len(self.forwards) >= MOST_FORWARDS:
            self.forwards = []
        self.inputs = inputs
        self._now = Forward(_number(), inputs)
        self.forwards.append(self._now)

    def enters(self, name: str) -> None:
        """A watched module is called."""
        if self._now is not None:
            self._open.append((name, _number()))

    def leaves(self, name: str) -> None:
        """It has returned. Calls in it that never did were left by an exception."""
        if self._now is None:
            return
        while self._open:
            begun, start = self._open.pop()
            if begun == name:
                self._now.calls.append(Call(name, start, _number()))
                return

    def part_ends(self) -> None:
        """A part that was called by itself has returned; unless another one follows, the forward has ended here."""
        if self._now is not None:
            self._part_end = _number()

    def ends(self, output: Any) -> None:
        """The forward has ended."""
        now, self._now = self._now, None
        if now is None:
            return
        now.end = _number() if self._part_end is None else self._part_end
        for x in tensors_in(output):
            if x.numel() == 1 and x.requires_grad:
                now.own_loss = True
            elif x.is_floating_point() and x.device.type == "cpu" and x.layout == torch.strided and type(x) in PLAIN:
                small = x.numel() <= SMALL
                value = x.detach() if small else x.detach().sum(dtype=torch.float32)
                now.outputs.append(Kept(value, x._version, not small))
        if now.calls:
            self.length = now.end - now.start
            self.pattern = tuple(Call(c.name, c.start - now.start, c.end - now.start) for c in now.calls)

    def clear(self) -> None:
        """The backward pass of these forwards begins: forget their tensors."""
        self.forwards, self._now = [], None

    def calls(self, forward: Forward) -> tuple[Call, ...]:
        """The calls of a forward, from `start` on; none if they are not known."""
        if forward.calls:
            return tuple(forward.calls)
        if forward.end - forward.start != self.length:
            return ()
        return tuple(Call(c.name, c.start + forward.start, c.end + forward.start) for c in self.pattern)

    @property
    def order(self) -> list[str]:
        """Names of modules in the order in which they returned last."""
        return [call.name for call in self.pattern]


def spoiled(x: Tensor, masks: bool = True) -> bool:
    """Does a tensor on the host hold NaN or +inf? With `masks`, -inf is no fault. Others count as not spoiled."""
    if type(x) not in PLAIN or x.device.type != "cpu" or x.layout != torch.strided:
        return False
    if not x.is_floating_point() or torch.isfinite(x := x.detach()).all():
        return False
    return not masks or bool((x.isnan() | (x == torch.inf)).any())
