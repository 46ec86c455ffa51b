"""Views of calls of modules and functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.attention_output import AttentionOutput
from stabwatch.hooks.base.expert_views import ExpertLoads, ExpertsCall, RouterCall
from stabwatch.hooks.base.layout import as_samples, as_tokens
from stabwatch.hooks.base.linear_view import LinearCall
from stabwatch.hooks.base.model_input import ModelInput
from stabwatch.hooks.base.sampling import ELEMENTS, spread
from stabwatch.hooks.base.side_effects import is_plain
from stabwatch.hooks.base.tensors import first_local, is_partial, local
from stabwatch.hooks.base.view import SiteView, View

if TYPE_CHECKING:
    from stabwatch.hooks.base.sites import Site

POINTS = 128
"""Tokens (or samples) between which distances are measured."""
SPLIT = "its input and its output are split over ranks in different ways (sequence parallelism)"
LOGIT_ROWS = 1024
"""Rows of the output logits that are sampled, evenly spread."""


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
        out = first_local(output)
        return None if out is None or out.numel() == 0 else cls(site, out)


@dataclass(eq=False)
class CodebookCall(SiteView):
    """An embedding whose indices the model computes itself, as it is called with none: a codebook of `rows` rows."""

    name: ClassVar[str] = "codebook"
    in_graph: ClassVar[bool] = False

    indices: Tensor
    rows: int

    @staticmethod
    def seen_at(site: Site) -> bool:
        """Embeddings."""
        return isinstance(site.module(), nn.Embedding)

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView | None:
        """See `SiteView`."""
        indices, weight = next(iter(args), None), module._parameters.get("weight")
        if type(indices) is not Tensor or weight is None or not indices.numel():
            return None
        if site.context.input.indices:
            return None
        return cls(site, indices.detach().reshape(-1), len(weight))


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
        out = first_local(output)
        return None if out is None or out.numel() == 0 else cls(site, out)

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
class SkipCall(SiteView):
    """A block that gets a second tensor beside the first one: its main input, and the skip connection.

    The second has the shape of the first, or is a feature map, as it is: of as many dimensions and samples.
    """

    name: ClassVar[str] = "skip"
    in_graph: ClassVar[bool] = False

    main: Tensor
    skip: Tensor

    @staticmethod
    def seen_at(site: Site) -> bool:
        """Repeated blocks, or every module where none repeats."""
        return site.role.residual

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView | None:
        """See `SiteView`. Only positional arguments are seen."""
        inputs = [x for x in (first_local(given) for given in args) if x is not None and x.numel()]
        if len(inputs) < 2 or inputs[0].dim() < 2:
            return None
        main = inputs[0]
        skip = next((x for x in inputs[1:] if _joins(main, x)), None)
        return None if skip is None else cls(site, main, skip)


def _joins(main: Tensor, other: Tensor) -> bool:
    same = main.dim() == other.dim() and len(main) == len(other)
    return same and (main.shape == other.shape or main.dim() > 3)


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
        out = first_local(output)
        return None if out is None or out.numel() == 0 else cls(site, out)

    @cached_property
    def trunk(self) -> Tensor | None:
        """The input of the block; None where the block gets no tensor as a positional argument."""
        block = self.site.parent
        while block is not None and not block.role.residual:
            block = block.parent
        found = None if block is None else block.input
        return None if found is None or is_partial(found) else local(found)


@dataclass(eq=False)
class WriterGradient(SiteView):
    """The same projection in the backward.

    inputs: (B, T, C) with T > 1, or None without a token axis. gradient: (B, T, D) of its output, or None if there is
    none. groups: the token groups, as they were in the forward.
    """

    name: ClassVar[str] = "writer"
    of_gradient: ClassVar[bool] = True

    inputs: Tensor | None
    gradient: Tensor | None
    groups: Tensor | None = None

    @staticmethod
    def seen_at(site: Site) -> bool:
        """The last projection of each branch of a block."""
        return site.role.writer

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView:
        """See `SiteView`."""
        inputs = first_local(args)
        x = None if inputs is None else as_samples(inputs.detach(), site.role)
        if x is None or x.dim() != 3 or x.shape[1] < 2:
            return cls(site, None, None)
        return cls(site, x, None, site.context.token_groups.of(x))

    @property
    def waits(self) -> bool:
        """See `SiteView`."""
        return self.inputs is not None

    def receive(self, gradient: Tensor, scale: Tensor | None) -> str | None:
        """See `SiteView`. What is measured of it are ratios: the scale has no part in them."""
        if self.inputs is not None:
            self.gradient = as_samples(gradient, self.site.role)
            if self.gradient.shape[:2] != self.inputs.shape[:2]:
                return SPLIT
        return None


@dataclass(eq=False)
class OutputGradient(SiteView):
    """A block or a residual writer in the backward: the gradient of its output.

    gradient: None if there is none. scale: that of the gradient scaler, which the gradient contains; () or None.
    """

    name: ClassVar[str] = "activation_gradient"
    of_gradient: ClassVar[bool] = True

    gradient: Tensor | None = None
    scale: Tensor | None = None

    @staticmethod
    def seen_at(site: Site) -> bool:
        """Blocks and residual writers, or every module where no block repeats."""
        return site.role.residual or site.role.writer

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView:
        """See `SiteView`."""
        return cls(site)

    @property
    def waits(self) -> bool:
        """See `SiteView`."""
        return True

    def receive(self, gradient: Tensor, scale: Tensor | None) -> str | None:
        """See `SiteView`."""
        self.gradient, self.scale = gradient, scale
        return None


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
        return cls(site, module, first_local(args))

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
    """A call of `scaled_dot_product_attention`: queries (B, H, T, D), keys (B, G, S, D), mask and options.

    scores: (B, H, T, S) of a module that computes them itself, in place of queries and keys.
    """

    name: ClassVar[str] = "attention_call"

    query: Tensor
    key: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float | None
    scores: Tensor | None = None

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
class LogitsCall(View):
    """A call of `cross_entropy`: output logits (N, classes, ...), target, and what changes a row's gradient.

    given: what the model was called with, if that is known.
    """

    name: ClassVar[str] = "logits"

    logits: Tensor
    target: Tensor
    weight: Tensor | None = None
    ignored: int = -100
    smoothing: float = 0.0
    given: ModelInput | None = None

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


CALL_VIEWS: tuple[type[SiteView], ...] = (
    RouterCall, CodebookCall, NonlinearityCall, ExpertsCall, ResidualOutput, SkipCall, WriterOutput, WriterGradient,
    OutputGradient, LinearCall, AttentionOutput, ModuleOutput,
)  # fmt: skip
"""Views that are made when a module is called, in this order."""
SITE_VIEWS: tuple[type[SiteView], ...] = (*CALL_VIEWS, ExpertLoads, AttentionCall)
