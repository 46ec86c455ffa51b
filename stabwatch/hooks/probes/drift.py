"""A batch that the user gives to `watch.probe`: how far have its representations moved since then?

The model is called on it once more, once in a round of phases. Other people's hooks would see that call, so it is only
made for who asks for it. Nothing of the model is changed: buffers are replaced for the call, random states and
attributes are restored. Each call draws the same random numbers, so that dropout does not look like drift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.side_effects import SCRIPTED, is_scripted, restore_side_effects
from stabwatch.hooks.base.sites import Site
from stabwatch.hooks.base.tensors import first_tensor
from stabwatch.hooks.base.views import ResidualOutput
from stabwatch.hooks.probes.directional import OwnCall, detached
from stabwatch.kernels.geometry import centred_cosine, drift, rank_among, shift_coherence
from stabwatch.signals.reductions import DRIFT, REGIME

COLLECTIVE = "a call of the model alone on one rank would hang: it is sharded, or it synchronises batch norms"

TRACKED_BATCH = PROBES.register(
    Probe(name="drift", tap="probe", reduction=DRIFT, tier="deep", round_robin=True, optional=True, reported_as="probe")
)
LAG = PROBES.register(
    Probe(
        name="drift", tap="probe", reduction=REGIME, tier="deep", round_robin=True, optional=True, reported_as="probe"
    )
)
"""Collected by `TrackedBatch`: it calls the model by itself."""
HISTORY = 256
"""Cosines of a block that the last of them is ranked among."""


class Lag:
    """The points of one block at the last measurement, and its last cosines of points with those before."""

    def __init__(self, points: Tensor) -> None:
        self._points = points
        self._cosines = torch.full((HISTORY,), torch.nan, device=points.device)
        self._seen = 0

    def aggregates(self, points: Tensor) -> Tensor | None:
        """Of `REGIME`; None where the points are of another shape than the last ones."""
        last, self._points = self._points, points
        if last.shape != points.shape or last.device != points.device:
            return None
        cosine = centred_cosine(points, last)
        self._cosines[self._seen % HISTORY] = cosine
        self._seen += 1
        return torch.stack((torch.ones_like(cosine), cosine, rank_among(cosine, self._cosines)))


class TrackedBatch:
    """Keeps the batch, and the points of every block as they were when it was given, and at the last measurement.

    before: the one whose place it takes, when the model has changed.
    """

    def __init__(
        self, model: nn.Module, sites: Mapping[str, Site], context: TapContext, before: TrackedBatch | None = None
    ) -> None:
        self._model = model
        self._context = context
        self._sites = {path: site for path, site in sites.items() if site.role.residual}
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._reference: dict[str, Tensor] = {}
        self._lags: dict[str, Lag] = {}
        if before is not None:
            self._call, self._reference, self._lags = before._call, before._reference, before._lags
        for probe in (TRACKED_BATCH, LAG):
            context.accumulators.add(probe.accumulator(site.name) for site in self._sites.values())

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Track this batch from now on; the model as it is now is the reference."""
        self._call, self._lags = None, {}
        why = SCRIPTED if is_scripted(self._model) else None if self._can_call_alone() else COLLECTIVE
        if why is not None:
            for site in self._sites.values():
                self._context.unmeasured(TRACKED_BATCH.report_key, site.name, why)
            return
        call = detached(args), detached(kwargs)
        self._reference = self._points(*call)
        self._call = call

    def measure(self) -> None:
        """Measure the drift of each block since `start`, and how like the last measurement it is."""
        if self._call is None:
            return
        for path, points in self._points(*self._call).items():
            name, reference = self._sites[path].name, self._reference.get(path)
            if len(points) > 2:
                self._measure_lag(path, points)
            if reference is not None and reference.shape == points.shape and len(points) > 2:
                moved = torch.stack((drift(points, reference), shift_coherence(points, reference)))
                aggregates = torch.cat((torch.ones_like(moved[:1]), moved))
                self._context.accumulators.update(TRACKED_BATCH.accumulator(name), aggregates)

    def _measure_lag(self, path: str, points: Tensor) -> None:
        """The first measurement of a block has none to be compared with: the reference is another distance away."""
        lag = self._lags.get(path)
        if lag is None:
            self._lags[path] = Lag(points)
        elif (aggregates := lag.aggregates(points)) is not None:
            self._context.accumulators.update(LAG.accumulator(self._sites[path].name), aggregates)

    def _can_call_alone(self) -> bool:
        sharded = any(hasattr(p, "_local_tensor") for p in self._model.parameters())
        return not sharded and not any(isinstance(m, nn.SyncBatchNorm) for m in self._model.modules())

    @torch.no_grad()
    def _points(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        buffers = {name: b.detach().clone() for name, b in self._model.named_buffers()}
        with self._collect(found), restore_side_effects(self._model, seed=0), torch.compiler.set_stance("force_eager"):
            functional_call(self._model, buffers, args, kwargs)
        return found

    @contextmanager
    def _collect(self, found: dict[str, Tensor]) -> Iterator[None]:
        def keep(path: str, output: Any) -> None:
            out = first_tensor(output)
            if out is not None and path not in found:
                found[path] = ResidualOutput(self._sites[path], out).points.clone()

        handles = [
            module.register_forward_hook(lambda m, args, out, path=path: keep(path, out))
            for path, site in self._sites.items()
            if (module := site.module()) is not None
        ]
        OwnCall.now = True
        try:
            yield
        finally:
            OwnCall.now = False
            for handle in handles:
                handle.remove()
