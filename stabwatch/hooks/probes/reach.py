"""Which parameters are trained at all: those that a gradient reaches and that an optimizer holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.hooks.probes.layers import ParameterTaps
from stabwatch.kernels.constants import device_constant
from stabwatch.signals.reductions import REACH as REDUCTION

REACH = PROBES.register(Probe(name="reach", tap="gradient", reduction=REDUCTION, tier="always", optional=True))
"""Collected by `Reach`."""
REPEATS = 16
LOOKS = 8
"""Steps of an optimizer from one look at the gradients that were there before to the next."""
LOST = 2
"""Looks in a row without a gradient after which it is lost."""
_Counts: TypeAlias = tuple[int, int, int, int, int]
MOST_ITEMS = 1024
"""A longer list is no list of layers."""


class Reach:
    """Notes at each step which parameters have ever had a gradient, which have lost it, and which are in no optimizer.

    A layer has numbers in the log from the first measured step on at which something of it is not trained. Most models
    have no such layer: then nothing is left to look at after the first step.
    parameters: has all that are to be trained. before: the one whose place it takes, when the model has changed.
    """

    _unreached: dict[int, nn.Parameter]
    _lost: dict[int, int]
    """Looks in a row without a gradient, by id of a parameter that had one before."""

    def __init__(
        self, model: nn.Module, parameters: ParameterTaps, device: torch.device, before: Reach | None = None
    ) -> None:
        hidden = list(unregistered(model))
        self._parameters = parameters
        self.layers = tuple(dict.fromkeys([*parameters.layers, *(name for name, _ in hidden)]))
        self._rows = {layer: i for i, layer in enumerate(self.layers)}
        self._hidden = [(p, self._rows[name]) for name, p in hidden]
        self._find()
        if before is not None:
            reached = {id(t.parameter) for t in before._tracked} - set(before._unreached)
            self._unreached = {key: p for key, p in self._unreached.items() if key not in reached}
        self._shown: set[int] = set()
        self._stepped = False
        self._steps: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._last: tuple[tuple[int, int, int], Mapping[int, _Counts]] = (0, 0, 0), {}
        self._repeats = 0
        self._matrix = new_accumulator(REDUCTION.name, device).repeat(len(self.layers), 1)

    def _find(self) -> None:
        self._tracked = self._parameters.tracked
        self._lost = {}
        every = [t.parameter for t in self._tracked] + [p for p, _ in self._hidden]
        self._unreached = {id(p): p for p in every}
        self._unheld = set(self._unreached)
        self._sizes: WeakKeyDictionary[Any, tuple[int, ...]] = WeakKeyDictionary()

    def before(self, optimizer: Any) -> None:
        """An optimizer that holds some of these parameters, or replaces one, is about to step."""
        self._stepped = True
        if self._tracked is not self._parameters.tracked:  # other parameters took their place
            self._find()
        sizes = tuple(len(group["params"]) for group in optimizer.param_groups)
        if self._unheld and self._sizes.get(optimizer) != sizes:
            self._sizes[optimizer] = sizes
            self._unheld -= {id(p) for group in optimizer.param_groups for p in group["params"]}
        if self._unreached:
            self._unreached = {key: p for key, p in self._unreached.items() if p.grad is None}
        steps = self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        if steps % LOOKS == 0:
            self._look(optimizer)

    def _look(self, optimizer: Any) -> None:
        """Which parameters of an optimizer had a gradient before and have none now, while others have one?"""
        held = [p for group in optimizer.param_groups for p in group["params"]]
        gone = [id(p) for p in held if p.grad is None]
        if len(gone) == len(held):
            return
        if self._lost:
            there = {id(p) for p in held}.difference(gone)
            self._lost = {key: looks for key, looks in self._lost.items() if key not in there}
        for key in gone:
            if key not in self._unreached:
                self._lost[key] = self._lost.get(key, 0) + 1

    def _is_lost(self, p: nn.Parameter) -> bool:
        return self._lost.get(id(p), 0) >= LOST

    def register(self, buffer: Buffer) -> None:
        """Put the matrix into the step's buffer."""
        buffer.add(tuple(REACH.accumulator(layer) for layer in self.layers), source_of(self._matrix))

    def measure(self) -> None:
        """Write down what is known of the layers of which something is not trained, at the end of a step."""
        if not self._stepped or not (self._unreached or self._unheld or self._shown or self._lost):
            return
        found = self._kept_counts()
        self._shown |= {row for row, (_, *idle) in found.items() if any(idle)}
        total = sum(count for count, *_ in found.values())
        numbers = {row: (*found.get(row, (0, 0, 0, 0, 0)), total) for row in sorted(self._shown)}
        for row, values in numbers.items():
            if values[0]:
                self._matrix[row] = device_constant(values, torch.float32, self._matrix.device)

    def _kept_counts(self) -> Mapping[int, _Counts]:
        """`_counts`, counted again where something has changed, and now and then (parameters may be frozen)."""
        lost = sum(looks >= LOST for looks in self._lost.values())
        key = len(self._unreached), len(self._unheld), lost
        self._repeats = self._repeats + 1 if key == self._last[0] else 0
        if self._repeats % REPEATS == 0:
            self._last = key, self._counts()
        return self._last[1]

    def _counts(self) -> Mapping[int, _Counts]:
        """By row: numbers that are to be trained, without a gradient, in no optimizer, not registered, lost."""
        out: dict[int, _Counts] = {}
        for t in self._tracked:
            p = t.parameter
            size = 0 if is_lazy(p) else (t.shape or p.shape).numel()
            if p.requires_grad and size:
                reached = id(p) not in self._unreached or not t.elements  # its gradient is on another rank
                held = id(p) not in self._unheld
                missing, unheld = size * (held and not reached), size * (reached and not held)
                _add(out, self._rows[t.layer], size, missing, unheld, 0, size * self._is_lost(p))
        for p, row in self._hidden:
            if id(p) not in self._unreached and id(p) in self._unheld:
                _add(out, row, p.numel(), 0, 0, p.numel(), 0)
        return out


def _add(out: dict[int, _Counts], row: int, *more: int) -> None:
    a, b, c, d, e = (x + y for x, y in zip(out.get(row, (0, 0, 0, 0, 0)), more, strict=True))
    out[row] = a, b, c, d, e


def unregistered(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(place, parameter) of parameters in plain lists, tuples and dicts, which `model.parameters()` leaves out.

    Not the flat parameters of FSDP1, which keeps them so beside the parameters that they are made of.
    """
    seen = {id(p) for p in model.parameters()}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if not isinstance(value, list | tuple | dict) or len(value) > MOST_ITEMS:
                continue
            for p in _parameters(value.values() if isinstance(value, dict) else value):
                if p.requires_grad and id(p) not in seen and not hasattr(p, "_shard_param_infos"):
                    seen.add(id(p))
                    yield (f"{name}.{attribute}" if name else attribute), p


def _parameters(items: Iterable[Any]) -> Iterator[nn.Parameter]:
    for item in items:
        if isinstance(item, nn.Module):
            yield from item.parameters()
        elif isinstance(item, nn.Parameter):
            yield item
