"""A fixed batch of the user's, given by `watch.probe`: how far have its representations moved since then?

The model is called once more on it, once in a round of turns. Hooks of others would see that call, so it is asked for.
Nothing of the model is changed: buffers are replaced for the call, random states and attributes are put back. Each
call draws the same random numbers, so that dropout moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stabwatch.hooks.base.side_effects import restore_side_effects
from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.base.tensors import first_tensor
from stabwatch.hooks.probes.directional import Probing, detached
from stabwatch.hooks.probes.residual import DeepTaps, points_of
from stabwatch.kernels.geometry import drift, shift_coherence

COLLECTIVE = "a call of the model alone on one rank would hang: it is sharded, or it synchronises batch norms"


class DriftTap:
    """Keeps the batch, and the points of every block as they were when it was given."""

    def __init__(self, model: nn.Module, sites: Mapping[str, Site], deep: DeepTaps) -> None:
        self._model = model
        self._sites = {path: site for path, site in sites.items() if site.role.residual}
        self._deep = deep
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._reference: dict[str, Tensor] = {}

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """From now on this batch, against the model as it is."""
        self._call = None
        if not self._calls_alone():
            for site in self._sites.values():
                site.watch.unmeasured("probe", site.name, COLLECTIVE)
            return
        call = detached(args), detached(kwargs)
        self._reference = self._points(*call)
        self._call = call

    def measure(self) -> None:
        """Fold the drift of each block since `start`."""
        if self._call is None:
            return
        for path, points in self._points(*self._call).items():
            reference = self._reference.get(path)
            if reference is not None and reference.shape == points.shape and len(points) > 2:
                moved = torch.stack((drift(points, reference), shift_coherence(points, reference)))
                partials = torch.cat((torch.ones_like(moved[:1]), moved))
                self._deep.store.update("probe", self._sites[path].name, "drift", partials)

    def _calls_alone(self) -> bool:
        sharded = any(hasattr(p, "_local_tensor") for p in self._model.parameters())
        return not sharded and not any(isinstance(m, nn.SyncBatchNorm) for m in self._model.modules())

    @torch.no_grad()
    def _points(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        buffers = {name: b.detach().clone() for name, b in self._model.named_buffers()}
        with self._seen(found), restore_side_effects(self._model, seed=0), torch.compiler.set_stance("force_eager"):
            functional_call(self._model, buffers, args, kwargs)
        return found

    @contextmanager
    def _seen(self, found: dict[str, Tensor]) -> Iterator[None]:
        def keep(path: str, output: Any) -> None:
            out = first_tensor(output)
            if out is not None and path not in found:
                found[path] = points_of(out, self._sites[path].role).clone()

        handles = [
            self._model.get_submodule(path).register_forward_hook(lambda m, args, out, path=path: keep(path, out))
            for path in self._sites
        ]
        Probing.now = True
        try:
            yield
        finally:
            Probing.now = False
            for handle in handles:
                handle.remove()
