"""The Jacobian of a model's output by its input, on deep steps, for who asks: the model is called once more.

For models that return a tensor of the shape of one of their inputs: one step of a map that may be rolled out. Of each
of eight samples at most the largest singular value is iterated from the vector of the last measurement (the samples
are others by then), and one product with a vector of random signs estimates the Frobenius norm. The model is called
once; all products come from that one graph, so that dropout is the same in each. The weights are those after the step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.tensors import first_tensor, new_accumulator
from stabwatch.hooks.probes.directional import DirectionalDerivative, NotCallable, OwnCall
from stabwatch.hooks.probes.sharpness import SYNCHRONISED
from stabwatch.hooks.probes.weights import SHARDED
from stabwatch.kernels.jacobian import climb_rows
from stabwatch.kernels.jacobian.eager import unit_rows
from stabwatch.kernels.merge import merge_
from stabwatch.signals import reductions

SAMPLES = 8
FIRST_STEPS, STEPS = 8, 2
"""Of the iteration, at the first measurement and from then on."""
NO_MAP = "its output has not the shape of one of its floating-point inputs: it is no step of a map"
NO_SECOND = "an operation of the model cannot be differentiated twice"

JACOBIAN = PROBES.register(
    Probe(name="jacobian", tap="jacobian", reduction=reductions.JACOBIAN, tier="deep", optional=True)
)
"""Collected by `JacobianTap`: it calls the model by itself."""


class JacobianTap:
    """Accumulator for the whole run. derivative: what keeps the first samples of the last batch."""

    def __init__(self, model: nn.Module, derivative: DirectionalDerivative, context: TapContext) -> None:
        self.derivative = derivative
        self._context, self._model = context, model
        self._vectors: Tensor | None = None
        self._off = False
        self._accumulator = new_accumulator("jacobian", context.device)

    def register(self, buffer: Buffer) -> None:
        """Put the accumulator into the step's buffer."""
        buffer.add((JACOBIAN.accumulator(),), source_of(self._accumulator))

    def step_ends(self) -> None:
        """All optimizers have stepped."""
        if self._off or not (self.derivative.ready or self.derivative.refusal):
            return
        OwnCall.now = True
        try:
            why = self._why_not() or self._measure()
        finally:
            OwnCall.now = False
        if why is not None:
            self._off = True
            self._context.unmeasured(JACOBIAN.report_key, "", why)

    def _why_not(self) -> str | None:
        if self.derivative.refusal:
            return self.derivative.refusal
        if any(isinstance(m, nn.SyncBatchNorm) for m in self._model.modules()):
            return SYNCHRONISED
        return SHARDED if any(hasattr(p, "_local_tensor") for p in self._model.parameters()) else None

    @torch.enable_grad()
    def _measure(self) -> str | None:
        """Returns why it cannot be measured."""
        args, kwargs = self.derivative.call
        leaves: list[Tensor] = []
        args, kwargs = _with_leaves(args, leaves), _with_leaves(kwargs, leaves)
        parameters = {name: p.detach() for name, p in self._model.named_parameters()}
        with torch.compiler.set_stance("force_eager"):
            try:
                out = first_tensor(self.derivative.output(parameters, (args, kwargs)))
            except NotCallable as error:
                return str(error)
        x = next((x for x in leaves if out is not None and x.shape == out.shape), None)
        if out is None or x is None or not x.numel():
            return NO_MAP
        try:
            found = self._products(x, out)
        except (RuntimeError, NotImplementedError):
            return NO_SECOND
        merge_(reductions.JACOBIAN, self._accumulator, found.to(self._accumulator.device, non_blocking=True))
        return None

    def _products(self, x: Tensor, out: Tensor) -> Tensor:
        """Aggregates of `JACOBIAN`, by products with the Jacobian (the gradient of a gradient) and its transpose."""
        cotangent = torch.zeros_like(out, requires_grad=True)
        (back,) = torch.autograd.grad(out, x, cotangent, create_graph=True)

        def forward(v: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(back, cotangent, v.view_as(x).to(x.dtype), retain_graph=True)
            return found.flatten(1).float()

        def backward(w: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(out, x, w.view_as(out).to(out.dtype), retain_graph=True)
            return found.flatten(1).float()

        size = len(x), x[0].numel()
        steps, vectors = STEPS, self._vectors
        if vectors is None or vectors.shape != size or vectors.device != x.device:
            steps, vectors = FIRST_STEPS, unit_rows(self._drawn(size, x.device, signs=False))
        with torch.no_grad():
            for _ in range(steps):
                vectors, values, residuals = climb_rows(forward, backward, vectors)
            self._vectors = vectors
            squares = forward(self._drawn(size, x.device, signs=True)).square().sum()
        count = torch.full_like(squares, float(len(x)))
        return torch.stack((count, squares, values.sum(), values.max(), residuals.max()))

    def _drawn(self, size: tuple[int, int], device: torch.device, signs: bool) -> Tensor:
        """Random numbers, drawn on the device they are for."""
        seed = int(torch.randint(2**62, (), generator=self._context.generator))
        draw = torch.Generator(device).manual_seed(seed)
        if signs:
            return torch.randint(2, size, generator=draw, device=device).float() * 2 - 1
        return torch.randn(size, generator=draw, device=device)


def _with_leaves(given: Any, leaves: list[Tensor]) -> Any:
    """The arguments of a call, with floating-point tensors among them as leaves of a graph."""

    def leaf(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.dim():
            return x
        leaves.append(x.detach().requires_grad_())
        return leaves[-1]

    return {k: leaf(v) for k, v in given.items()} if isinstance(given, dict) else tuple(leaf(v) for v in given)
