"""What each step does to the product of query and key weights, by attention module, in turn."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.copies import Copies
from stabwatch.hooks.base.naming import named_modules
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.probes.weights import SHARDED
from stabwatch.kernels.increment import increment
from stabwatch.signals.reductions import INCREMENT

_PAIRS = (
    ("q_proj", "k_proj"), ("query", "key"), ("to_q", "to_k"), ("wq", "wk"), ("q_lin", "k_lin"),
    ("query_proj", "key_proj"), ("linear_q", "linear_k"), ("q", "k"),
)  # fmt: skip
_FUSED = ("in_proj_weight", "qkv", "qkv_proj", "c_attn", "Wqkv")
_NAMES = frozenset((*chain.from_iterable(_PAIRS), *_FUSED))
_HEADS = ("num_heads", "n_head", "num_attention_heads", "n_heads", "heads")
NO_ENTROPY = (
    "the host would wait for singular values: query_key_increment_entropy is measured on the CPU only; "
    "query_key_increment_rank counts directions too"
)
NO_HEADS = "it does not state its number of heads"

INCREMENTS = PROBES.register(
    Probe(name="increment", tap="query_key", reduction=INCREMENT, tier="deep", round_robin=True, optional=True)
)
"""Collected by `Increments`: it needs the weights before and after the step."""
Split = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Pair:
    """Queries and keys of one attention module; of a fused weight both are the same parameter.

    queries, keys: make (heads, head width, D) of the weight.
    """

    name: str
    query: nn.Parameter
    key: nn.Parameter
    queries: Split
    keys: Split

    def split(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Heads of the two weights."""
        return self.queries(query), self.keys(key)


class Increments:
    """The attention modules of a model, measured in turn."""

    def __init__(self, model: nn.Module, context: TapContext) -> None:
        self._context = context
        self._pairs = [pair for item in named_modules(model) for pair in _of_module(item.name, item.module, context)]
        context.accumulators.add(INCREMENTS.accumulator(pair.name) for pair in self._pairs)
        if any(pair.query.device.type != "cpu" for pair in self._pairs):
            context.unmeasured("note", "increment", NO_ENTROPY)
        self._copies: dict[str, Copies] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def before(self, optimizer: Any) -> None:
        """Copy the weights that this optimizer is about to change, of the modules that are due."""
        flags = self._context.flags
        due = self._pairs[flags.phase % flags.phases :: flags.phases] if self._pairs else []
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]} if due else ()
        for pair in due:
            if (id(pair.query) in stepped or id(pair.key) in stepped) and pair.name not in self._before:
                both = [pair.query.detach(), pair.key.detach()][: 1 if pair.key is pair.query else 2]
                copies = self._copies.setdefault(pair.name, Copies()).of(both)
                self._before[pair.name] = copies[0], copies[-1]

    @torch.no_grad()
    def step_ends(self) -> None:
        """All optimizers have stepped."""
        before, self._before = self._before, {}
        for pair in self._pairs:
            if pair.name in before:
                now = pair.split(pair.query.detach(), pair.key.detach())
                found = increment(*now, *pair.split(*before[pair.name]))
                self._context.accumulators.update(INCREMENTS.accumulator(pair.name), found)


def _of_module(name: str, module: nn.Module, context: TapContext) -> Iterator[Pair]:
    found = _weights(module)
    if found is None:
        return
    query, key, fused = found
    if any(hasattr(p, "_local_tensor") for p in (query, key)):
        context.unmeasured(INCREMENTS.report_key, name, SHARDED)
        return
    width = _head_width(module, query if fused is None else fused(query)[0])
    if not width:
        context.unmeasured(INCREMENTS.report_key, name, NO_HEADS)
        return

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, width))

    if fused is None:
        rows = len(query), len(key)
        if rows[0] % width == 0 and rows[1] % width == 0 and rows[0] % rows[1] == 0:
            yield Pair(name, query, key, heads, heads)
    else:
        yield Pair(name, query, key, lambda x: heads(fused(x)[0]), lambda x: heads(fused(x)[1]))


def _weights(module: nn.Module) -> tuple[nn.Parameter, nn.Parameter, Split | None] | None:
    """Weights of queries and keys (rows: outputs); with a function that makes thirds of a fused one."""
    if _NAMES.isdisjoint(_held(module)):
        return None
    for names in _PAIRS:
        query, key = (_trained(_own(module, attribute)) for attribute in names)
        if query is not None and key is not None:
            return query, key, None
    for attribute in _FUSED:
        weight = _trained(_own(module, attribute), fused=True)
        if weight is not None and weight.shape[0] == 3 * weight.shape[1]:
            return weight, weight, lambda x: x.unflatten(0, (3, -1))
        if weight is not None and weight.shape[1] == 3 * weight.shape[0]:
            return weight, weight, lambda x: x.T.unflatten(0, (3, -1))
    return None


def _held(module: nn.Module) -> Mapping[str, Any]:
    """Children and parameters. Nothing of a module in TorchScript; a parametrized weight is not computed."""
    tables = (vars(module).get(name) for name in ("_modules", "_parameters"))
    return ChainMap(*(table for table in tables if isinstance(table, dict)))


def _own(module: nn.Module, name: str) -> Any:
    return _held(module).get(name)


def _trained(held: Any, fused: bool = False) -> nn.Parameter | None:
    """The matrix of a linear layer, if it is trained; of a fused one also that of GPT-2's layer, or the parameter."""
    weight = held
    if isinstance(held, nn.Module):
        weight = _own(held, "weight") if fused or isinstance(held, nn.Linear) else None
    if not isinstance(weight, nn.Parameter) or nn.parameter.is_lazy(weight):
        return None
    return weight if weight.dim() == 2 and weight.requires_grad else None


def _head_width(module: nn.Module, query: Tensor) -> int:
    """0 if it is not known."""
    stated = getattr(module, "head_dim", None)
    if isinstance(stated, int) and stated > 0 and len(query) % stated == 0:
        return stated
    for owner in (module, getattr(module, "config", None)):
        for name in _HEADS:
            count = getattr(owner, name, None)
            if isinstance(count, int) and count > 0 and len(query) % count == 0:
                return len(query) // count
    return 0
