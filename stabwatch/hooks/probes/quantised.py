"""Weights of quantisation-aware training: fake quantisers of torch.ao and torchao, those that look like LSQ's, and
those that `watch.quantised` describes.

Read are the weight and the numbers of its quantiser; neither is called, and no parametrised weight is computed. Only a
scale that the user gives as a function of the weight is computed.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.naming import named_modules
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.probes.last_update import stride
from stabwatch.hooks.probes.weights import SHARDED
from stabwatch.kernels.constants import device_constant
from stabwatch.kernels.quantised import Memory, quantised
from stabwatch.signals.reductions import FLIPS, LEVELS

_OF_WEIGHT = re.compile(r"(^|_)w(eights?)?(_|$)")
"""In the name of a module's quantiser: `weight_fake_quant`, `weight_quantizer`, `quan_w_fn`."""
_SCALES = ("scale", "s", "step_size")
_RANGES = (("quant_min", "quant_max"), ("qmin", "qmax"), ("q_min", "q_max"), ("thd_neg", "thd_pos"), ("Qn", "Qp"))
_INTEGERS = re.compile(r"torch\.(u?)int(\d+)$")
NO_GRID = "its quantiser shows no scale and zero point with a range of integers of 16 bits at most"
NO_FIT = "the shape of its quantiser's scale is not that of tensor, channel or block"
OFF = "its quantiser is switched off"
ELSEWHERE = "the scale or the zero point that `watch.quantised` was given lies on another device than the weight"
NORMALISED = "a batch norm scales its weight before it is quantised"

QUANTISERS = PROBES.register(
    Probe(name="quantised", tap="quantiser", reduction=LEVELS, tier="deep", optional=True, reported_as="quantised")
)
FLIPPED = PROBES.register(
    Probe(name="quantised", tap="quantiser", reduction=FLIPS, tier="deep", optional=True, reported_as="quantised")
)
"""Both are collected by `QuantisedWeights`: it remembers the integers of the last visit."""


@dataclass(frozen=True)
class Grid:
    """What a quantiser rounds to: clamp(round(w / scale + zero_point), low, high).

    axis: of the channels, where the scale is a vector. enabled: on an accelerator, where it cannot be read, else None.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    axis: int
    enabled: Tensor | None


@dataclass(frozen=True, eq=False)
class OwnQuantiser:
    """A quantiser that the user describes; see `Watch.quantised`."""

    scale: Tensor | float | Callable[[Tensor], Tensor]
    low: int
    high: int
    zero_point: Tensor | float = 0
    axis: int = 0

    def grid(self, weight: Tensor) -> Grid | str:
        """As it is now, or why it is not known."""
        scale = self.scale(weight) if callable(self.scale) else self.scale
        scale, zero_point = (
            x.detach().float() if isinstance(x, Tensor) else device_constant((float(x),), torch.float32, weight.device)
            for x in (scale, self.zero_point)
        )
        if scale.device != weight.device or zero_point.device != weight.device:
            return ELSEWHERE
        if zero_point.numel() not in (1, scale.numel()):
            return NO_FIT
        return Grid(scale, zero_point, self.low, self.high, self.axis % weight.dim() if weight.dim() else 0, None)


@dataclass(eq=False)
class QuantisedWeight:
    """A weight, its quantiser, and what the last visit left. places: of the sample's scales, for their last shape."""

    name: str
    weight: nn.Parameter
    quantiser: nn.Module | OwnQuantiser
    memory: Memory | None = None
    places: tuple[tuple[int, ...], Tensor] | None = None

    def measured(self) -> tuple[Tensor, Tensor | None] | str:
        """Aggregates of `LEVELS` and, from the second visit on, of `FLIPS`; or why there are none."""
        weight = self.weight.detach()
        grid = self.quantiser.grid(weight) if isinstance(self.quantiser, OwnQuantiser) else _grid(self.quantiser)
        if isinstance(grid, str):
            return grid
        blocks = _blocks(grid, weight.shape)
        if blocks is None:
            return NO_FIT
        if self.places is None or self.places[0] != blocks or self.places[1].device != weight.device:
            self.places = blocks, _places(weight, blocks)
        scale = grid.scale.flatten()[self.places[1]]
        zero_point = grid.zero_point.flatten()
        zero_point = zero_point[self.places[1]] if len(zero_point) == grid.scale.numel() else zero_point
        sample = weight.flatten()[:: stride(weight.numel())]
        if self.memory is not None and self.memory.integers.device != sample.device:
            self.memory = None
        levels, flips, self.memory = quantised(sample, scale, zero_point.round(), grid.low, grid.high, self.memory)
        if grid.enabled is not None:
            levels, flips = levels * grid.enabled, None if flips is None else flips * grid.enabled
        return levels, flips


class QuantisedWeights:
    """The quantised weights of a model, measured together. before: those whose place they take, when it has changed.

    found: the user has described another one meanwhile.
    """

    def __init__(self, model: nn.Module, context: TapContext, before: QuantisedWeights | None = None) -> None:
        self._context, self._model, self.found = context, model, False
        self._own: list[tuple[nn.Parameter, OwnQuantiser]] = [] if before is None else before._own
        self._weights = [*self._described(), *self._seen()]
        self._measured_step: int | None = None
        for probe in (QUANTISERS, FLIPPED):
            context.accumulators.add(probe.accumulator(w.name) for w in self._weights)
        known = {} if before is None else {w.name: w for w in before._weights}
        for mine in self._weights:
            old = known.get(mine.name)
            if old is not None and old.weight is mine.weight and old.quantiser is mine.quantiser:
                mine.memory = old.memory

    def describe(self, weight: nn.Parameter, quantiser: OwnQuantiser) -> None:
        """Measure a weight as this quantiser rounds it, from the next forward on. Raises ValueError."""
        if not any(p is weight for p in self._model.parameters()):
            raise ValueError("quantised: the weight is no parameter of the watched model")
        if _fitting(quantiser.low, quantiser.high) is None:
            raise ValueError("quantised: low and high are integers of 16 bits, low below high")
        self._own = [(p, q) for p, q in self._own if p is not weight] + [(weight, quantiser)]
        self.found = True

    def _described(self) -> Iterator[QuantisedWeight]:
        names = {id(p): name.removesuffix(".weight") for name, p in self._model.named_parameters()}
        for weight, quantiser in self._own:
            name = names.get(id(weight))
            if name is None:
                continue  # it is no part of the model any more
            if hasattr(weight, "_local_tensor"):
                self._context.unmeasured(QUANTISERS.report_key, name, SHARDED)
            else:
                yield QuantisedWeight(name, weight, quantiser)

    def _seen(self) -> Iterator[QuantisedWeight]:
        own = {id(weight) for weight, _ in self._own}
        for item in named_modules(self._model):
            weight, quantiser = _quantiser(item.module)
            if weight is not None and quantiser is not None and id(weight) not in own:
                yield from _of_module(item.name, item.module, weight, quantiser, self._context)

    @torch.no_grad()
    def measure(self) -> None:
        """Once in a step: before the first optimizer steps, where the gradients are known, and else at its end."""
        if self._measured_step == self._context.step:
            return
        self._measured_step = self._context.step
        for mine in self._weights:
            found = mine.measured()
            if isinstance(found, str):
                self._context.unmeasured(QUANTISERS.report_key, mine.name, found)
                continue
            self._context.reasons.withdraw(QUANTISERS.report_key, mine.name)
            for probe, aggregates in zip((QUANTISERS, FLIPPED), found, strict=True):
                if aggregates is not None:
                    self._context.accumulators.update(probe.accumulator(mine.name), aggregates)


def _of_module(
    name: str, module: nn.Module, weight: nn.Parameter, quantiser: nn.Module, context: TapContext
) -> Iterator[QuantisedWeight]:
    why = None
    if hasattr(weight, "_local_tensor"):
        why = SHARDED
    elif _range(quantiser) is None:
        why = NO_GRID
    elif "bn" in module._modules:
        why = NORMALISED
    if why is None:
        yield QuantisedWeight(name, weight, quantiser)
    else:
        context.unmeasured(QUANTISERS.report_key, name, why)


def _quantiser(module: nn.Module) -> tuple[nn.Parameter | None, nn.Module | None]:
    """A module's weight and what quantises it: a child that its name tells, or the weight's only parametrisation."""
    if not isinstance(vars(module).get("_modules"), dict):
        return None, None  # TorchScript
    children: Mapping[str, nn.Module | None] = module._modules
    owned, weight = children.items(), module._parameters.get("weight")
    parametrised = getattr(children.get("parametrizations"), "_modules", {}).get("weight")
    if weight is None and parametrised is not None and len(parametrised._modules) == 1:
        weight = parametrised._parameters.get("original")
        owned = {"weight": next(iter(parametrised._modules.values()))}.items()
    if not isinstance(weight, nn.Parameter) or nn.parameter.is_lazy(weight) or not weight.is_floating_point():
        return None, None
    for key, child in owned:
        if child is not None and _OF_WEIGHT.search(key) and _looks_like_one(child):
            return weight, child
    return None, None


def _looks_like_one(child: nn.Module) -> bool:
    return "quant" in type(child).__name__.lower() or (_range(child) is not None and _scale(child) is not None)


def _own(module: nn.Module) -> Mapping[str, Any]:
    """Attributes, parameters and buffers, without those that a class computes."""
    tables = (vars(module).get(name) for name in ("_buffers", "_parameters"))
    return ChainMap(vars(module), *(t for t in tables if isinstance(t, dict)))


def _scale(quantiser: nn.Module) -> Tensor | None:
    own = _own(quantiser)
    found = (own.get(name) for name in _SCALES)
    return next((x.detach() for x in found if isinstance(x, Tensor) and x.is_floating_point()), None)


def _range(quantiser: nn.Module) -> tuple[int, int] | None:
    """Smallest and largest integer. LSQ's paper writes its Qn without the sign."""
    own = _own(quantiser)
    for names in _RANGES:
        low, high = (own.get(name) for name in names)
        if isinstance(low, int | float) and isinstance(high, int | float):
            return _fitting(-abs(low) if names[0] == "Qn" else low, high)
    kind = _INTEGERS.match(str(getattr(own.get("config"), "dtype", "")))
    if kind is None:
        return None
    levels = 2 ** int(kind[2])
    return _fitting(0, levels - 1) if kind[1] else _fitting(-levels // 2, levels // 2 - 1)


def _fitting(low: float, high: float) -> tuple[int, int] | None:
    whole = low == int(low) and high == int(high)
    return (int(low), int(high)) if whole and -(2**15) <= low < high < 2**15 else None


def _grid(quantiser: nn.Module) -> Grid | str:
    """As it is now, or why it is not known."""
    own, limits, scale = _own(quantiser), _range(quantiser), _scale(quantiser)
    if limits is None or scale is None or "float_qparams" in str(own.get("qscheme")):
        return NO_GRID
    enabled = own.get("fake_quant_enabled", own.get("enabled", True))
    if not isinstance(enabled, Tensor) or enabled.device.type == "cpu":
        if not enabled:
            return OFF
        enabled = None
    zero_point, axis = own.get("zero_point"), own.get("ch_axis")
    if not isinstance(zero_point, Tensor):
        if zero_point not in (None, 0):
            return NO_GRID
        zero_point = scale.new_zeros(1)
    if zero_point.numel() not in (1, scale.numel()):
        return NO_FIT
    return Grid(scale, zero_point.detach().float(), *limits, axis if isinstance(axis, int) else 0, enabled)


def _blocks(grid: Grid, shape: torch.Size) -> tuple[int, ...] | None:
    """Into how many blocks the scale divides each dimension of the weight."""
    scale = grid.scale
    axis = max(grid.axis, 0)
    if scale.numel() == 1:
        return (1,) * len(shape)
    if scale.dim() == 1 and axis < len(shape) and len(scale) == shape[axis]:
        return tuple(n if d == axis else 1 for d, n in enumerate(shape))
    fits = scale.dim() == len(shape) and all(k and n % k == 0 for n, k in zip(shape, scale.shape, strict=True))
    return tuple(scale.shape) if fits else None


def _places(weight: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """Index into the flat scale for each number of the sample, int64 (n,)."""
    flat = torch.arange(0, weight.numel(), stride(weight.numel()), device=weight.device)
    places = torch.zeros_like(flat)
    for d, (n, k) in enumerate(zip(weight.shape, blocks, strict=True)):
        places = places * k + flat // prod(weight.shape[d + 1 :]) % n // (n // k)
    return places
