"""What a probe is called with: a typed view of a tapped call.

A view is made once per call and shared by all probes of it; what several of them need (sampled rows, say) is computed
when the first one asks for it. A view must not be kept: it refers to tensors of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from stabwatch.hooks.base.sites import Site


class View:
    """A view of one tapped call."""

    name: ClassVar[str] = ""
    """Key of the errors and of the cost of making such views."""
    only_in_turn: ClassVar[bool] = False
    """Views are made only where a layer is due: probes of them must be `round_robin`."""
    of_gradient: ClassVar[bool] = False
    """It shows the backward of the call: probes of it are measured when the gradient of the output is known."""
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

    @property
    def waits(self) -> bool:
        """Of a view of a gradient: can it be measured when the backward brings the gradient?"""
        return False

    def receive(self, gradient: Tensor, scale: Tensor | None) -> str | None:
        """The backward brought the gradient of the output, of a loss that was multiplied by `scale`.

        Returns why nothing can be measured, or None.
        """
        raise NotImplementedError

    def parts(self) -> tuple[SiteView, ...]:
        """Further views of the same call."""
        return ()

    def _groups(self, x: Tensor) -> Tensor | None:
        return self.site.context.token_groups.of(x)
