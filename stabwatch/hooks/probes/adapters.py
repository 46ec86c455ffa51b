"""Low-rank adapters (LoRA): PEFT's layers, and layers of other authors that use the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.copies import Copies
from stabwatch.hooks.base.naming import named_modules
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.probes.spectra import Spectra, of_weights
from stabwatch.hooks.probes.weights import SHARDED
from stabwatch.kernels.adapter import adapter
from stabwatch.signals.reductions import ADAPTER

_NAMES = (("lora_A", "lora_B"), ("lora_a", "lora_b"))
_DEFAULT = "default"
QUANTISED = "the weight under this adapter is quantised: its norm is not known without unpacking it"
NO_WEIGHT = "no weight was found that this adapter is added to"

LORA = PROBES.register(
    Probe(
        name="adapter", tap="adapter", reduction=ADAPTER, tier="deep", round_robin=True, optional=True,
        reported_as="adapter",
    )
)  # fmt: skip
"""Collected by `Adapters`: it needs both factors before and after the step."""


@dataclass(eq=False)
class Adapter:
    """One adapter of one layer. a (r, in), b (out, r): its factors. weight: what it is added to.

    spectra: where the last measurement of the weight's singular values ended.
    """

    name: str
    a: nn.Parameter
    b: nn.Parameter
    scaling: Callable[[], float]
    weight: Tensor
    spectra: Spectra

    def factors(self) -> tuple[Tensor, Tensor]:
        """As matrices; those of a convolution are flattened."""
        return self.a.detach().flatten(1), self.b.detach().flatten(1)

    def size_of_weight(self) -> tuple[Tensor, Tensor]:
        """Squared Frobenius norm of the weight, and its largest singular value (of a row or column the norm)."""
        weight = self.weight.detach().flatten(1)
        if min(weight.shape) < 2:
            sumsq = weight.float().square().sum()
            return sumsq, sumsq.sqrt()
        ((_, found),) = of_weights([(self.spectra, weight)])
        return found[0, 1], found[0, 2]


class Adapters:
    """The adapters of a model, measured in turn. before: those whose place they take, when the model has changed."""

    def __init__(self, model: nn.Module, context: TapContext, before: Adapters | None = None) -> None:
        self._context = context
        self._adapters = [a for item in named_modules(model) for a in _of_module(item.name, item.module, context)]
        context.accumulators.add(LORA.accumulator(a.name) for a in self._adapters)
        known = {} if before is None else {a.name: a for a in before._adapters}
        for mine in self._adapters:
            old = known.get(mine.name)
            mine.spectra = old.spectra if old is not None and old.weight is mine.weight else mine.spectra
        self._copies: dict[str, Copies] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def before(self, optimizer: Any) -> None:
        """Copy the factors that this optimizer is about to change, of the adapters that are due."""
        flags = self._context.flags
        due = self._adapters[flags.phase % flags.phases :: flags.phases] if self._adapters else []
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]} if due else ()
        for mine in due:
            if (id(mine.a) in stepped or id(mine.b) in stepped) and mine.name not in self._before:
                a, b = self._copies.setdefault(mine.name, Copies()).of(list(mine.factors()))
                self._before[mine.name] = a, b

    @torch.no_grad()
    def step_ends(self) -> None:
        """All optimizers have stepped."""
        before, self._before = self._before, {}
        for mine in self._adapters:
            if mine.name in before:
                found = adapter(*mine.factors(), *before[mine.name], mine.scaling())
                self._context.accumulators.update(LORA.accumulator(mine.name), _aggregates(mine, found))


def _aggregates(mine: Adapter, found: Tensor) -> Tensor:
    sumsq, first = (x.to(found.device) for x in mine.size_of_weight())
    own, change, largest = found.unbind()
    facts = torch.full_like(found, float(len(mine.a)))
    return torch.stack(
        (torch.ones_like(own), own, change, sumsq, largest, first, facts[0], torch.full_like(own, mine.scaling()))
    )


def _of_module(name: str, module: nn.Module, context: TapContext) -> Iterator[Adapter]:
    for first, second in _NAMES:
        ups, downs = (_factors(getattr(module, attribute, None)) for attribute in (first, second))
        for key in ups.keys() & downs.keys():
            place = name if key == _DEFAULT else f"{name}.{key}"
            a, b, weight = ups[key], downs[key], _weight_of(module)
            if a.dim() < 2 or b.dim() < 2 or a.shape[0] != b.shape[1]:
                continue
            why = _reason(a, b, weight)
            if why is not None or weight is None:
                context.unmeasured(LORA.report_key, place, why or NO_WEIGHT)
                continue
            yield Adapter(
                place, a, b, _scaling(module, key, len(a)), weight, Spectra("", weight.flatten(1).shape, None)
            )


def _reason(a: Tensor, b: Tensor, weight: Tensor | None) -> str | None:
    """Why an adapter is not measured; None where it is."""
    if weight is None:
        return NO_WEIGHT
    if any(hasattr(x, "_local_tensor") for x in (a, b, weight)):
        return SHARDED
    if not weight.is_floating_point():
        return QUANTISED
    return None if weight.numel() == b.shape[0] * a[0].numel() else SHARDED


def _factors(found: Any) -> Mapping[str, nn.Parameter]:
    """The factors of a layer by the adapter's name: of a dict of layers, of one layer, or the parameter itself."""
    if isinstance(found, nn.ModuleDict):
        items: Mapping[str, Any] = dict(found.items())
    elif isinstance(found, nn.ParameterDict):
        return {}  # of an embedding, whose factors are the other way round
    else:
        items = {_DEFAULT: found}
    weights = {key: getattr(x, "weight", x) for key, x in items.items()}
    return {key: x for key, x in weights.items() if isinstance(x, nn.Parameter) and not nn.parameter.is_lazy(x)}


def _weight_of(module: nn.Module) -> Tensor | None:
    """What the adapter is added to: the weight of the layer inside it, or its own."""
    inside = (getattr(module, name, None) for name in ("base_layer", "linear"))
    held = next((m for m in inside if isinstance(m, nn.Module)), module)
    while isinstance(inner := getattr(held, "base_layer", None), nn.Module):
        held = inner
    found = vars(held)["_parameters"].get("weight")
    return found if isinstance(found, Tensor) else None


def _scaling(module: nn.Module, key: str, rank: int) -> Callable[[], float]:
    """The factor, read when it is needed: it may be changed between steps."""

    def read() -> float:
        stated = getattr(module, "scaling", None)
        if isinstance(stated, Mapping):
            stated = stated.get(key)
        if stated is None:
            alpha = getattr(module, "alpha", getattr(module, "lora_alpha", None))
            stated = alpha / rank if isinstance(alpha, int | float) else None
        return float(stated) if isinstance(stated, int | float) else 1.0

    return read
