"""The view of a module that looks like attention, whatever it calls inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from stabwatch.hooks.base.tensors import first_tensor
from stabwatch.hooks.base.view import SiteView

if TYPE_CHECKING:
    from stabwatch.hooks.base.sites import Site


@dataclass(eq=False)
class AttentionOutput(SiteView):
    """What a module that looks like attention returned, and what it was called with."""

    name: ClassVar[str] = "attention_output"
    in_graph: ClassVar[bool] = False
    output: Tensor
    inputs: tuple[Any, ...]

    @staticmethod
    def seen_at(site: Site) -> bool:
        """See `SiteView`."""
        return site.attention_like

    @classmethod
    def from_call(cls, site: Site, module: nn.Module, args: Sequence[Any], output: Any) -> SiteView | None:
        """See `SiteView`. Of modules within each other, the innermost."""
        sites = [vars(inner).get("_stabwatch") for inner in module.modules() if inner is not module]
        out = first_tensor(output)
        if out is None or any(inner is not None and inner.attention_like for inner in sites):
            return None
        return cls(site, out, tuple(args))
