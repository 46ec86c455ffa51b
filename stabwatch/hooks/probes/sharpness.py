"""The largest eigenvalue and the trace of the Hessian, on deep steps, for who asks: the model is called once more.

One step of the iteration per measurement (two products with the Hessian), from the vector of the last one; one more
product for the trace. The Hessian is that of the mean loss on the last batch (its first 512 samples), at the weights
after the step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.accumulators import Buffer, source_of
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.loss_call import LossCall
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.tensors import first_tensor, new_accumulator
from stabwatch.hooks.probes.directional import DirectionalDerivative, OwnCall
from stabwatch.hooks.probes.weights import SHARDED
from stabwatch.kernels.merge import merge_
from stabwatch.kernels.sharpness import climb, dot, unit
from stabwatch.signals import reductions

SAMPLES = 512
FIRST_ITERATIONS = 8
"""At the first measurement, when there is no warm start."""
NO_LOSS = "neither a `.loss` on the model's output nor a call of `cross_entropy` or `mse_loss` with its mean was seen"
OTHER_OUTPUT = "the loss was called with something else than the model's output, or than its rows one after the other"
NO_LIMIT = "the limit of stability is known for SGD, Adam and AdamW only"
ON_DEVICE = "its learning rate is a tensor on the accelerator, which the host would have to wait for"
COMPLEX = "it has complex parameters, for which this is not defined"
SYNCHRONISED = "a call of this model on one rank would wait for the others (SyncBatchNorm)"
_ADAM = re.compile(r"(Fused|CPU|DeepSpeedCPU|Distributed)?AdamW?")

SHARPNESS = PROBES.register(
    Probe(name="sharpness", tap="sharpness", reduction=reductions.SHARPNESS, tier="deep", optional=True)
)
"""Collected by `SharpnessTap`: it needs the weights after all optimizers have stepped."""


@dataclass(frozen=True)
class Limit:
    """Of one parameter group: the step is stable up to an eigenvalue of `most` of the preconditioned Hessian."""

    most: float
    root: Callable[[Tensor], Tensor | float]
    """Square root of the inverse of the preconditioner of a parameter."""


class SharpnessTap:
    """Accumulator for the whole run. A step is what all optimizers change together."""

    def __init__(self, model: nn.Module, derivative: DirectionalDerivative, context: TapContext) -> None:
        self.derivative = derivative
        self._context = context
        self._named = {id(p): name for name, p in model.named_parameters()}
        self._optimizers: list[Any] = []
        self._vector: dict[str, Tensor] = {}
        self._off = False
        self._double = True
        self._accumulator = new_accumulator("sharpness", context.device)
        self._alone = not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
        context.keeps_loss_call = True

    def register(self, buffer: Buffer) -> None:
        """Put the accumulator into the step's buffer."""
        buffer.add((SHARPNESS.accumulator(),), source_of(self._accumulator))

    def after(self, optimizer: Any) -> None:
        """An optimizer has stepped."""
        self._optimizers.append(optimizer)

    def step_ends(self) -> None:
        """All optimizers have stepped."""
        optimizers, self._optimizers = self._optimizers, []
        refusal = self.derivative.refusal
        if self._off or not optimizers or not (self.derivative.ready or refusal):
            return
        OwnCall.now = True
        try:
            why = refusal or self._measure(optimizers)
        finally:
            OwnCall.now = False
        if why is not None:
            self._off = True
            self._context.unmeasured(SHARPNESS.report_key, "", why)

    def _measure(self, optimizers: Sequence[Any]) -> str | None:
        """Returns why it cannot be measured."""
        if not self._alone:
            return SYNCHRONISED
        limits: dict[str, tuple[Tensor, Limit]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if id(p) not in self._named or not p.requires_grad or p.grad is None:
                        continue
                    limit = limit_of(type(optimizer), group, optimizer.state.get(p, {}))
                    if isinstance(limit, str):
                        return limit
                    if hasattr(p, "_local_tensor") or p.is_complex():
                        return COMPLEX if p.is_complex() else SHARDED
                    limits[self._named[id(p)]] = p.detach(), limit
        if not limits:
            return None
        parameters = {name: p for name, (p, _) in limits.items()}
        scales = {name: limit.root(p) * limit.most**-0.5 for name, (p, limit) in limits.items()}
        try:
            found, trace = self._iterate(parameters, scales), self._trace(parameters)
        except ValueError as error:
            return str(error)
        ratio, residual = found.unbind()
        most = max(limit.most for _, limit in limits.values())
        merge_(
            reductions.SHARPNESS,
            self._accumulator,
            torch.stack((torch.ones_like(ratio), trace.to(ratio.device), ratio, ratio * most, residual)),
        )
        return None

    @torch.no_grad()
    def _iterate(self, parameters: Mapping[str, Tensor], scales: Mapping[str, Tensor | float]) -> Tensor:
        names = list(parameters)
        iterations = 1
        if self._vector.keys() != parameters.keys() or any(
            self._vector[n].shape != parameters[n].shape or self._vector[n].device != parameters[n].device
            for n in names
        ):
            iterations = FIRST_ITERATIONS
            drawn = (torch.randn(parameters[n].shape, generator=self._context.generator) for n in names)
            start = [x.to(parameters[n].device) for n, x in zip(names, drawn, strict=True)]
            self._vector = dict(zip(names, unit(start), strict=True))

        def apply(vector: Sequence[Tensor]) -> list[Tensor]:
            scaled = [scales[n] * v for n, v in zip(names, vector, strict=True)]
            return [scales[n] * w.float() for n, w in zip(names, self._product(parameters, scaled), strict=True)]

        found = torch.zeros(2)
        vector = [self._vector[n] for n in names]
        for _ in range(iterations):
            vector, found = climb(apply, vector)
        self._vector = dict(zip(names, vector, strict=True))
        return found

    @torch.no_grad()
    def _trace(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Hutchinson's estimate: v H v with a random sign for each parameter, drawn on its device."""
        seed = int(torch.randint(2**62, (), generator=self._context.generator))
        draw = {d: torch.Generator(d).manual_seed(seed) for d in {p.device for p in parameters.values()}}
        signs = [
            torch.randint(2, p.shape, generator=draw[p.device], device=p.device, dtype=torch.float32) * 2 - 1
            for p in parameters.values()
        ]
        return dot(signs, self._product(parameters, signs))

    def _product(self, parameters: Mapping[str, Tensor], vector: Sequence[Tensor]) -> list[Tensor]:
        """Hessian times vector: differentiated twice, or by a difference of gradients where an operation forbids it."""
        if self._double:
            try:
                return self._gradient(parameters, vector)
            except (RuntimeError, NotImplementedError):
                self._double = False
        size = torch.stack([p.float().square().sum() for p in parameters.values()]).sum().sqrt()
        length = torch.stack([v.float().square().sum() for v in vector]).sum().sqrt()
        step = 1e-3 * size / length
        ends = [
            self._gradient({n: p + s * step * v for (n, p), v in zip(parameters.items(), vector, strict=True)})
            for s in (1.0, -1.0)
        ]
        return [(a - b) / (2 * step) for a, b in zip(*ends, strict=True)]

    @torch.enable_grad()
    def _gradient(self, parameters: Mapping[str, Tensor], vector: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The gradient of the loss, or its derivative along a vector."""
        leaves = {n: p.detach().requires_grad_() for n, p in parameters.items()}
        points = list(leaves.values())
        loss = self._loss(leaves)
        first = torch.autograd.grad(loss, points, create_graph=vector is not None, allow_unused=True)
        if vector is None:
            return [torch.zeros_like(p) if g is None else g for g, p in zip(first, points, strict=True)]
        parts = [(g * v).sum() for g, v in zip(first, vector, strict=True) if g is not None and g.requires_grad]
        if not parts:
            return [torch.zeros_like(p) for p in points]
        second = torch.autograd.grad(torch.stack(parts).sum(), points, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g.detach() for g, p in zip(second, points, strict=True)]

    def _loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        with torch.compiler.set_stance("force_eager"):
            out = self.derivative.output(parameters)
        own = out.get("loss") if isinstance(out, dict) else getattr(out, "loss", None)
        if isinstance(own, Tensor) and own.numel() == 1:
            return own
        call: LossCall | None = self._context.loss_call
        if call is None:
            raise ValueError(NO_LOSS)
        logits = out.get("logits") if isinstance(out, dict) else getattr(out, "logits", None)
        found = call.of_slice(logits if isinstance(logits, Tensor) else first_tensor(out), *self.derivative.sizes)
        if found is None:
            raise ValueError(OTHER_OUTPUT)
        return found


def limit_of(kind: type, group: Mapping[str, Any], state: Mapping[str, Any]) -> Limit | str:
    """The limit of stability of a parameter group of an optimizer of this class; why there is none.

    SGD: Cohen et al. 2021; Adam: Cohen et al. 2022, with P = (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps).
    """
    names = [base.__name__ for base in kind.__mro__]
    if isinstance(group["lr"], Tensor) and group["lr"].device.type != "cpu":
        return ON_DEVICE
    if group["lr"] is None:  # Adafactor of transformers finds its own
        return NO_LIMIT
    rate = max(float(group["lr"]), torch.finfo(torch.float32).tiny)
    if any(map(_ADAM.fullmatch, names)) and {"exp_avg", "exp_avg_sq", "step"} <= state.keys():
        beta, second = (float(b) for b in group["betas"])
        return Limit((2 + 2 * beta) / ((1 - beta) * rate), _of_adam(group, state, beta, second))
    if "SGD" in names and not state.keys() - {"momentum_buffer"}:
        beta = float(group.get("momentum", 0.0))
        factor = (2 + 2 * beta) / (1 + 2 * beta) if group.get("nesterov") else 2 + 2 * beta
        return Limit(factor / rate, lambda p: 1.0)
    return NO_LIMIT


def _of_adam(
    group: Mapping[str, Any], state: Mapping[str, Any], beta: float, second: float
) -> Callable[[Tensor], Tensor]:
    squares = state.get("max_exp_avg_sq", state["exp_avg_sq"])

    def root(p: Tensor) -> Tensor:
        step = torch.as_tensor(state["step"]).to(squares.device, non_blocking=True).float()
        preconditioner = (squares.float() / (1 - second**step)).sqrt() + float(group["eps"])
        return ((1 - beta**step) * preconditioner).rsqrt()

    return root
