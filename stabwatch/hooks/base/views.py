"""Typed views of tapped calls: what a probe is called with.

A view is made once per call and shared by all probes of it; what several of them need (sampled rows, say) is computed
when the first one asks for it. A view must not be kept: it refers to tensors of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.layout import as_samples, as_tokens
from stabwatch.hooks.base.roles import Choice
from stabwatch.hooks.base.sampling import ELEMENTS, some_rows, spread
from stabwatch.hooks.base.side_effects import is_plain
from stabwatch.hooks.base.tensors import first_tensor
from stabwatch.kernels.router import grouped, loads

if TYPE_CHECKING:
    from stabwatch.hooks.base.sites import Site

POINTS = 128
"""Tokens (or samples) between which distances are measured."""
LOGIT_ROWS = 1024
"""Rows of the output logits that are sampled, evenly spread."""
ROUTED_TOKENS = 1024
"""Tokens of a call for which a router's logits are computed again, evenly spread."""

MOST_EXPERTS = 64
"""Experts of a layer that have series of their own."""


class View:
    """A view of one tapped call."""

    name: ClassVar[str] = ""
    """Key of the errors and of the cost of making such views."""
    only_in_turn: ClassVar[bool] = False
    """Views are made only where a layer is due: probes of them must be `round_robin`."""
    in_graph: ClassVar[bool] = True
    """Views are also made of calls inside a compiled graph."""

    @property
    def place(self) -> str:
        """Name of its accumulator; '' for the whole run."""
        return ""


@dataclass(eq=False)
class SiteView(View):
    """A call of a watched module."""

    site: Site

    @property
    def place(self) -> str:
        """See `place_of`."""
        return self.place_of(self.site)

    @staticmethod
    def place_of(site: Site) -> str:
        """Name of the module, or of another place that its calls say something about."""
        return site.name

    @staticmethod
    def seen_at(site: Site) -> bool:
        """Does this site get such views?"""
        raise NotImplementedError

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView | None:
        """The view of a call of a module; None where there is nothing to see."""
        raise NotImplementedError

    def parts(self) -> tuple[SiteView, ...]:
        """Further views of the same call."""
        return ()

    def _groups(self, x: Tensor) -> Tensor | None:
        return self.site.context.token_groups.of(x)


@dataclass(eq=False)
class ModuleOutput(SiteView):
    """Any watched module: its output `x`."""

    name: ClassVar[str] = "output"
    in_graph: ClassVar[bool] = False

    x: Tensor

    @staticmethod
    def seen_at(site: Site) -> bool:
        """Modules whose outputs are watched."""
        return site.activation is not None

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView | None:
        """See `SiteView`."""
        out = first_tensor(output)
        return None if out is None or out.numel() == 0 else cls(site, out.detach())


@dataclass(eq=False)
class ResidualOutput(SiteView):
    """The residual stream: the output of a block."""

    name: ClassVar[str] = "residual"

    out: Tensor

    @staticmethod
    def seen_at(site: Site) -> bool:
        """Repeated blocks, or every module where none repeats."""
        return site.role.residual

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView | None:
        """See `SiteView`."""
        out = first_tensor(output)
        return None if out is None or out.numel() == 0 else cls(site, out.detach())

    @cached_property
    def tokens(self) -> Tensor:
        """(B, T, D) or (N, D)."""
        return as_tokens(self.out, self.site.role)

    @cached_property
    def rows(self) -> Tensor:
        """(N, D): some of its tokens, 65,536 numbers at most."""
        return spread(self.tokens.flatten(0, -2), max(1, ELEMENTS // self.tokens.shape[-1]))

    @cached_property
    def samples(self) -> Tensor | None:
        """(B, T, D) with T > 1; None where there is no token axis."""
        x = as_tokens(as_samples(self.out, self.site.role), self.site.role)
        return x if x.dim() == 3 and x.shape[1] > 1 else None

    @cached_property
    def points(self) -> Tensor:
        """(n, D): some of its tokens or samples, 128 at most."""
        return spread(self.tokens.flatten(0, -2), POINTS)

    @cached_property
    def groups(self) -> Tensor | None:
        """bool (K, B, T): the token groups of `samples`; None where none are known."""
        return None if self.samples is None else self._groups(self.samples)

    @property
    def generator(self) -> torch.Generator:
        """For what is drawn at random, on the host."""
        return self.site.context.generator


@dataclass(eq=False)
class WriterOutput(SiteView):
    """A projection that writes into the residual stream: its output, and the input of the block around it."""

    name: ClassVar[str] = "writer"
    in_graph: ClassVar[bool] = False

    out: Tensor

    @staticmethod
    def seen_at(site: Site) -> bool:
        """The last projection of each branch of a block."""
        return site.role.writer

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView | None:
        """See `SiteView`."""
        out = first_tensor(output)
        return None if out is None or out.numel() == 0 else cls(site, out.detach())

    @cached_property
    def trunk(self) -> Tensor | None:
        """The input of the block; None where the block gets no tensor as a positional argument."""
        block = self.site.parent
        while block is not None and not block.role.residual:
            block = block.parent
        return None if block is None or block.input is None else block.input.detach()


@dataclass(eq=False)
class WriterGradient(SiteView):
    """The same projection in the backward.

    inputs: (B, T, C) with T > 1, or None without a token axis. gradient: (B, T, D) of its output, or None if there is
    none. groups: the token groups, as they were in the forward.
    """

    name: ClassVar[str] = "writer"

    inputs: Tensor | None
    gradient: Tensor | None
    groups: Tensor | None = None

    @staticmethod
    def seen_at(site: Site) -> bool:
        """The last projection of each branch of a block."""
        return site.role.writer


@dataclass(eq=False)
class NonlinearityCall(SiteView):
    """An activation function that was called with `inputs`."""

    name: ClassVar[str] = "nonlinearity"

    module: nn.Module
    inputs: Tensor | None

    @staticmethod
    def seen_at(site: Site) -> bool:
        """Modules of elementwise functions that saturate."""
        return site.role.nonlinear

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView | None:
        """See `SiteView`."""
        return cls(site, module, first_tensor(args))

    @property
    def out_of_place(self) -> nn.Module | None:
        """The module; None where it overwrites its input."""
        return None if getattr(self.module, "inplace", False) else self.module

    @property
    def plain(self) -> nn.Module | None:
        """The module; None where its class is not known to be without state and random numbers."""
        return self.module if is_plain(self.module) else None

    @cached_property
    def rows(self) -> Tensor | None:
        """(N, D): some of its inputs."""
        x = self.inputs
        if x is None or not x.numel() or x.dim() < 2:
            return None
        rows = as_tokens(x.detach()).flatten(0, -2)
        return spread(rows, max(1, ELEMENTS // rows.shape[-1]))


@dataclass(eq=False)
class AttentionCall(SiteView):
    """A call of `scaled_dot_product_attention`: queries (B, H, T, D), keys (B, G, S, D), mask and options."""

    name: ClassVar[str] = "attention_call"

    query: Tensor
    key: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float | None

    @staticmethod
    def seen_at(site: Site) -> bool:
        """Modules that may call attention."""
        return site.bracket is not None

    @property
    def same_tokens(self) -> bool | None:
        """True where queries and keys are as many; None otherwise."""
        return True if self.query.shape[-2] == self.key.shape[-2] else None

    @cached_property
    def counted(self) -> Tensor | None:
        """bool (B, T): the tokens that belong to a group; None where no groups are known."""
        groups = self._groups(self.query.transpose(1, 2))
        return None if groups is None else groups.any(dim=0)


@dataclass(eq=False)
class RouterCall(SiteView):
    """A router of a mixture of experts, with its weight (E, C), its bias and its input."""

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
        inputs, weight, bias = first_tensor(args), module._parameters.get("weight"), module._parameters.get("bias")
        if inputs is None or not isinstance(weight, Tensor) or inputs.shape[-1] != weight.shape[-1]:
            return None
        return cls(site, weight, bias if isinstance(bias, Tensor) else None, inputs)

    def parts(self) -> tuple[SiteView, ...]:
        """Its experts."""
        return (ExpertLoads(self.site, self),)

    @cached_property
    def logits(self) -> Tensor:
        """float32 (N, E), computed again for some tokens: what a router returns differs between libraries."""
        rows = self.inputs.detach().flatten(0, -2)
        rows = rows[:: max(1, -(-len(rows) // ROUTED_TOKENS))]
        kind = torch.promote_types(rows.dtype, self.weight.dtype)  # routers that are kept in float32 compute in it
        bias = None if self.bias is None else self.bias.detach().to(kind)
        return nn.functional.linear(rows.to(kind), self.weight.detach().to(kind), bias).float()

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


@dataclass(eq=False)
class LogitsCall(View):
    """A call of `cross_entropy`: output logits (N, classes, ...), target, and what changes a row's gradient."""

    name: ClassVar[str] = "logits"

    logits: Tensor
    target: Tensor
    weight: Tensor | None = None
    ignored: int = -100
    smoothing: float = 0.0

    @cached_property
    def rows(self) -> Tensor:
        """(n, classes): some of the rows, evenly spread."""
        return sampled_rows(self.logits, self.target)[0]


def sampled_rows(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
    """About a thousand rows (n, classes), evenly spread, and their labels where the target is class indices."""
    labels = None if target.is_floating_point() else target.reshape(-1)
    logits = logit_rows(logits)
    stride = max(1, logits.shape[0] // LOGIT_ROWS)
    return logits[::stride], None if labels is None else labels[::stride]


def logit_rows(logits: Tensor) -> Tensor:
    """(N, classes) of (classes,), (N, classes) or (N, classes, ...)."""
    if logits.dim() > 2:
        return logits.movedim(1, -1).flatten(0, -2)
    return logits.unsqueeze(0) if logits.dim() == 1 else logits


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


@dataclass(eq=False)
class ParameterGradient(ParameterView):
    """Its weight and gradient before the step (this rank's shards).

    gradient: None where the optimizer computes it inside its step (a closure). scale: the loss scale that a fused
    optimizer takes out inside its own kernel, if there is one.
    """

    weight: Tensor
    gradient: Tensor | None
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
        return self.weight if self.weight.shape == self.parameter.shape else None


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


CALL_VIEWS: tuple[type[SiteView], ...] = (
    RouterCall, NonlinearityCall, ExpertsCall, ResidualOutput, WriterOutput, WriterGradient, ModuleOutput,
)  # fmt: skip
"""Views that are made when a module is called, in this order."""
SITE_VIEWS: tuple[type[SiteView], ...] = (*CALL_VIEWS, ExpertLoads, AttentionCall)
PARAMETER_VIEWS: tuple[type[ParameterView], ...] = (ParameterWeight, ParameterGradient, ParameterChange)
RUN_VIEWS: tuple[type[View], ...] = (LogitsCall, WholeGradient)
