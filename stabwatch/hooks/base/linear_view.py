"""The view of a call of a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from stabwatch.hooks.base.sampling import ELEMENTS, spread
from stabwatch.hooks.base.tensors import first_local
from stabwatch.hooks.base.view import SiteView

if TYPE_CHECKING:
    from stabwatch.hooks.base.sites import Site

SHARDED = "this rank has only a part of its weight"


@dataclass(eq=False)
class LinearCall(SiteView):
    """A linear layer with its weight (D, C): some of its inputs (n, C), and its outputs of these (n, D)."""

    name: ClassVar[str] = "alignment"
    in_graph: ClassVar[bool] = False

    inputs: Tensor
    out: Tensor
    weight: Tensor

    @staticmethod
    def seen_at(site: Site) -> bool:
        """Linear layers whose outputs are watched: residual writers, heads, and others outside of blocks."""
        return isinstance(site.module(), nn.Linear) and site.activation is not None

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView | None:
        """See `SiteView`."""
        inputs, out, weight = first_local(args), first_local(output), module._parameters.get("weight")
        if hasattr(weight, "_local_tensor"):
            site.context.unmeasured(cls.name, site.name, SHARDED)
            return None
        if inputs is None or out is None or not isinstance(weight, Tensor):
            return None
        if (
            not inputs.numel()
            or inputs.shape[:-1] != out.shape[:-1]
            or weight.shape != (out.shape[-1], inputs.shape[-1])
        ):
            return None
        rows, found = (x.detach().flatten(0, -2) if x.dim() > 1 else x.detach()[None] for x in (inputs, out))
        most = max(1, ELEMENTS // max(rows.shape[-1], found.shape[-1]))
        rows, found = spread(rows, most), spread(found, most)
        bias = module._parameters.get("bias")
        return cls(site, rows, found if bias is None else found - bias.detach(), weight.detach())
