"""Views of routers and experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.roles import Choice
from stabwatch.hooks.base.tensors import first_local
from stabwatch.hooks.base.view import SiteView
from stabwatch.kernels.router import grouped, loads

if TYPE_CHECKING:
    from stabwatch.hooks.base.sites import Site

ROUTED_TOKENS = 1024
"""Tokens of a call for which a router's logits are computed again, evenly spread."""

MOST_EXPERTS = 64
"""Experts of a layer that have series of their own."""


@dataclass(eq=False)
class RouterCall(SiteView):
    """A router of a mixture of experts, with its weight (E or more, C), its bias and its input."""

    name: ClassVar[str] = "router"

    weight: Tensor
    bias: Tensor | None
    inputs: Tensor

    @staticmethod
    def seen_at(site: Site) -> bool:
        """Routers."""
        return site.role.top_k > 0

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView | None:
        """See `SiteView`."""
        inputs, weight, bias = first_local(args), module._parameters.get("weight"), module._parameters.get("bias")
        if inputs is None or not isinstance(weight, Tensor) or inputs.shape[-1] != weight.shape[-1]:
            return None
        return cls(site, weight, bias if isinstance(bias, Tensor) else None, inputs)

    def parts(self) -> tuple[SiteView, ...]:
        """Its experts."""
        return (ExpertLoads(self.site, self),)

    @cached_property
    def logits(self) -> Tensor:
        """float32 (N, E), computed again for some tokens: what a router returns differs between libraries.

        Only of the experts that it chooses from.
        """
        rows = self.inputs.detach().flatten(0, -2)
        rows = rows[:: max(1, -(-len(rows) // ROUTED_TOKENS))]
        kind = torch.promote_types(rows.dtype, self.weight.dtype)  # routers that are kept in float32 compute in it
        bias = None if self.bias is None else self.bias.detach().to(kind)
        logits = nn.functional.linear(rows.to(kind), self.weight.detach().to(kind), bias)
        return logits[:, : self.site.role.experts].float()

    @cached_property
    def scores(self) -> Tensor:
        """float32 (N, E): each token goes to the experts with the largest scores."""
        choice = self.site.role.choice
        return self.logits if choice is None else _corrected(choice, self.logits)

    @cached_property
    def loads(self) -> Tensor:
        """float32 (E,): how many of the tokens go to each expert."""
        return loads(self.scores, self.site.role.top_k)

    @property
    def capacity(self) -> float | None:
        """The capacity factor that the layer states, if it states one."""
        return self.site.role.capacity or None


@dataclass(eq=False)
class ExpertLoads(SiteView):
    """What a call of a router says of its experts."""

    call: RouterCall

    @staticmethod
    def seen_at(site: Site) -> bool:
        """Routers."""
        return site.role.top_k > 0

    @staticmethod
    def place_of(site: Site) -> str:
        """Name of the experts."""
        return experts_of(site.name)

    @property
    def few(self) -> int | None:
        """The number of experts; None for more than 64."""
        return self.site.role.experts if self.site.role.experts <= MOST_EXPERTS else None


def experts_of(router: str) -> str:
    """Name of the experts of a router: `layers.0.mlp.gate` and `layers.0.mlp.gate.wg` give `layers.0.mlp.experts`."""
    owner, _, name = router.rpartition(".")
    if not any(word in name for word in ("gate", "router", "gating")):
        owner = owner.rpartition(".")[0]
    return f"{owner}.experts".strip(".")


def _corrected(choice: Choice, logits: Tensor) -> Tensor:
    scores = logits.softmax(dim=-1) if choice.softmax else logits.sigmoid()
    correction: Tensor = getattr(choice.holder, choice.correction)
    return grouped(scores + correction.detach().float().flatten(), choice.groups, choice.kept)


@dataclass(eq=False)
class ExpertsCall(SiteView):
    """A module that contains all experts of a layer, and what it was called with."""

    name: ClassVar[str] = "experts"

    module: nn.Module
    args: Sequence[Any]

    @staticmethod
    def seen_at(site: Site) -> bool:
        """Modules that contain several experts."""
        return site.role.stack > 0

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView | None:
        """See `SiteView`."""
        return cls(site, module, args)

    @property
    def whole(self) -> nn.Module | None:
        """The module; None where its parameters are sharded over ranks."""
        sharded = any(hasattr(p, "_local_tensor") for p in self.module.parameters())
        return None if sharded else self.module

    @property
    def few(self) -> int | None:
        """The number of experts; None for more than 64."""
        return self.site.role.stack if self.site.role.stack <= MOST_EXPERTS else None

    @property
    def routed(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Tokens (N, D), experts of each (N, k), their weights (N, k); None where it is called with anything else."""
        found = tuple(self.args[:3])
        if len(found) < 3 or not all(isinstance(x, Tensor) and x.dim() == 2 for x in found):
            return None
        tokens, chosen, weights = found
        if chosen.is_floating_point() or not weights.is_floating_point() or len(tokens) != len(chosen):
            return None
        return tokens, chosen, weights
