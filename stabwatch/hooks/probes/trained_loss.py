"""The trained loss: the objective whose gradient the optimizer's step uses.

It is read at the roots of the backward passes, whatever computed it: unscaled by the gradient scaler, and summed over
the micro-batches of a step as their gradients are. A backward pass counts for a watch if it changed gradients of that
watch's parameters, or the parameters themselves (an optimizer that steps during the backward pass). Where the gradients
are dropped before the step (`zero_grad`), so is the loss. Where a step evaluates the objective again after it has moved
the parameters (LBFGS, SAM), the first evaluation counts: the loss of the weights that the step began with.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from stabwatch.distributed.unreduced import gradient

MOST = 16
"""Parameters that are compared before and after a backward pass, evenly spread, while that is enough."""
LOSS_DIMENSIONS = 2
"""A root with more dimensions, given with a gradient, is an activation (a pipeline stage) and no loss per token."""
SEARCHED = 64
"""Functions behind a loss among which that of a gradient scaler is looked for."""
WITNESSES = 4
"""Gradients that are looked at to see whether they were set to zero: the smallest ones."""

Number: TypeAlias = Tensor | float
"""A float where a loss is in the host's memory, else float32 () on its device."""
State = tuple[tuple[int, int, int], ...]
"""Of each parameter: its version, and identity and version of its gradient; two zeros where there is none."""

_unscaled = WeakTensorKeyDictionary()
_KEY = "stabwatch scaling"
"""Under which a function of autograd holds how its result was scaled, as long as a graph contains it."""


class RunningBackward:
    """The backward pass that is under way. scale: that of the gradient scaler whose loss it began at, ()."""

    scale: Tensor | None = None


@dataclass(frozen=True)
class Scaling:
    """What a gradient scaler has done to a loss. ever: it has done so to any."""

    scale: Tensor
    scaler: Callable[[], Any]
    ever: ClassVar[bool] = False


def remember_scaling(outputs: Any, scaled: Any, scale: Any, scaler: Any = None) -> None:
    """`scaler.scale(outputs)` gave `scaled`: a backward pass from there is that of `outputs`, times `scale`."""
    if isinstance(outputs, Tensor) and isinstance(scaled, Tensor):
        if scaled is not outputs:
            _unscaled[scaled] = outputs.detach()
            Scaling.ever = True
            node: Any = scaled.grad_fn
            if isinstance(scale, Tensor) and node is not None:
                node.metadata[_KEY] = Scaling(scale, _weakly(scaler))
    elif isinstance(outputs, list | tuple) and isinstance(scaled, list | tuple):
        for one, other in zip(outputs, scaled, strict=True):
            remember_scaling(one, other, scale, scaler)


def _weakly(scaler: Any) -> Callable[[], Any]:
    return (lambda: None) if scaler is None else weakref.ref(scaler)


def _scaling(root: Any) -> Scaling | None:
    """How a gradient scaler has scaled a root, or terms that it is a sum or a multiple of."""
    if not Scaling.ever or not isinstance(root, Tensor):
        return None
    nodes: list[Any] = [root.grad_fn]
    for node in nodes:
        if node is None:
            continue
        found: Scaling | None = node.metadata.get(_KEY)
        if found is not None:
            return found
        if len(nodes) < SEARCHED:
            nodes += [after for after, _ in node.next_functions]
    return None


def scalers_used() -> bool:
    """Has a gradient scaler scaled anything in this process?"""
    return Scaling.ever


def scale_of(roots: Iterable[Any]) -> Tensor | None:
    """The scale of the first root that a gradient scaler has scaled."""
    found = map(_scaling, roots)
    return next((each.scale for each in found if each is not None), None)


def scaler_of(roots: Iterable[Any]) -> Any:
    """The gradient scaler that has scaled the first scaled root; None for none."""
    found = map(_scaling, roots)
    return next((each.scaler() for each in found if each is not None), None)


def objective(roots: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> Number | None:
    """The number that a backward pass differentiates: the sum of its scalar roots, each times its given gradient.

    Returns a float where it is in the host's memory, else float32 () on the first root's device; None if no root is a
    loss.
    """
    if len(roots) == 1 and type(roots[0]) is Tensor and _is_plain(roots[0], gradients):
        return float(roots[0].item())
    total = None
    for i, root in enumerate(roots):
        total = added(total, _part(root, None if gradients is None else gradients[i]))
    return total


def objective_on_host(roots: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> float | None:
    """The same as a number, if all roots are plain tensors in the host's memory: nobody waits for it."""
    if any(type(root) is not Tensor or root.device.type != "cpu" for root in roots):
        return None
    found = objective(roots, gradients)
    return found.item() if isinstance(found, Tensor) else found


def _is_plain(root: Tensor, gradients: Sequence[Tensor | None] | None) -> bool:
    """A number in the host's memory that nothing has scaled."""
    if gradients is not None and gradients[0] is not None:
        return False
    return not Scaling.ever and root.numel() == 1 and root.device.type == "cpu"


def _part(root: Tensor, gradient: Tensor | None) -> Number | None:
    value = _unscaled.get(root) if Scaling.ever else None
    if value is None and gradient is None and (scaling := _scaling(root)) is not None:
        value = root.detach().float() / scaling.scale.to(root.device)
    scaled = value is not None
    value = root.detach() if value is None else value
    value = value.to_local() if hasattr(value, "to_local") else value
    if value.numel() == 1 and (gradient is None or scaled):
        if value.device.type == "cpu" and type(value) is Tensor:
            return float(value.item())
        return value.to(torch.float32, copy=True).reshape(())  # the loop may write into its loss before the step
    if gradient is None or root.dim() > LOSS_DIMENSIONS or gradient.shape != root.shape:
        return None
    return (value.float() * gradient.detach().float()).sum()


@dataclass
class TrainedLoss:
    """Collects the objective of one step of one watch. Nothing here waits for the device.

    kept_by: what keeps gradients that are not averaged yet (see `distributed.unreduced`), by id of the parameter.
    """

    parameters: Sequence[nn.Parameter]
    kept_by: Mapping[int, Any] = field(default_factory=dict)
    total: Number | None = None
    """Sum over the backward passes of the open step, a float or float32 ()."""
    passes: int = 0
    """Backward passes of the open step whose gradients were kept."""
    ever: bool = False
    """A backward pass has reached the parameters of this watch."""
    unsure: bool = False
    """A pass of the open step may have reached parameters that were not compared."""
    _given: Number | None = field(default=None, repr=False)
    _gave: bool = field(default=False, repr=False)
    _settled: bool = field(default=False, repr=False)
    _before: State = field(default=(), repr=False)
    _after: State = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        parameters: Iterable[nn.Parameter],
        most: int = MOST,
        kept_by: Mapping[int, Any] | None = None,
        known: Collection[int] = (),
    ) -> TrainedLoss:
        """Watch some of these parameters, evenly spread: those that are trained, and those with an id in `known`."""
        trained = [p for p in parameters if p.requires_grad or id(p) in known]
        stride = max(1, -(-len(trained) // most))
        return cls(trained[::stride], kept_by or {})

    def inherit(self, other: TrainedLoss) -> None:
        """Go on with what another one has collected, of other parameters. The loss of the open step is not known."""
        self.unsure = other.ever
        self.total, self.passes, self.ever, self._settled = other.total, other.passes, other.ever, other._settled
        self._given, self._gave, self._after = other._given, other._gave, self._state()

    def begin(self) -> None:
        """A backward pass begins: what was collected from gradients that are gone by now is forgotten."""
        self._before = self._state()
        if not self._after or self._settled:
            return
        had = [
            (then, now, p) for then, now, p in zip(self._after, self._before, self.parameters, strict=True) if then[1]
        ]
        if not had or any(then[1:] == now[1:] for then, now, _ in had):
            return
        written = [p.grad for then, now, p in had if then[1] == now[1] and p.grad is not None]
        if any(then[0] != now[0] for then, now, _ in had):
            self._settled = self.total is not None
        elif written:
            self._keep_where(_any_nonzero(written))
        else:
            self.clear()

    def _keep_where(self, nonzero: Tensor | None) -> None:
        """Something wrote into all gradients: clipping, or zeros. The device decides, as this may not wait for it."""
        if self.total is not None and nonzero is not None:
            here = nonzero.to(self.total.device) if isinstance(self.total, Tensor) else nonzero
            self.total = torch.where(here, self.total, 0.0)

    def reached(self) -> bool:
        """Has the backward pass that began last written into gradients or parameters?"""
        now = zip(self.parameters, self._before, strict=True)
        return any(_entry(p, self.kept_by) != before for p, before in now)

    def add(self, value: Number | None) -> None:
        """The backward pass that began last has ended; `value` is its objective."""
        self.passes += not self._settled
        self.collect(value)
        self._after = self._state()

    def collect(self, value: Number | None) -> None:
        """Add the objective of passes that were added without one."""
        self.ever = True
        if not self._settled:
            self.total = added(self.total, value)

    def give(self, value: Number | None) -> None:
        """Gradients of this objective were computed, unseen at the parameters; passes that are seen go before."""
        self._gave = True
        self._given = added(self._given, value)

    def _state(self) -> State:
        """The same as `_entry` of each, in a third of the time where no gradient is kept elsewhere."""
        if self.kept_by:
            return tuple([_entry(p, self.kept_by) for p in self.parameters])
        return tuple(
            [
                (p._version, id(g), g._version) if (g := p.grad) is not None else (p._version, 0, 0)
                for p in self.parameters
            ]
        )

    def gone(self) -> bool:
        """Were all gradients of the last pass set to None, or has something written into all of them?"""
        pairs = [(p, then) for p, then in zip(self.parameters, self._after, strict=False) if then[1]]
        return bool(pairs) and all(then[1:] != _entry(p, self.kept_by)[1:] for p, then in pairs)

    def moved(self) -> bool:
        """Has something written into the parameters since the last pass? Writing to `p.data` is not seen."""
        return any(p._version != then[0] for p, then in zip(self.parameters, self._after, strict=False))

    @property
    def reached_since_step(self) -> bool:
        """Has any backward pass, or call of `torch.autograd.grad`, reached the parameters in the open step?"""
        return bool(self._after) or self._gave

    def take(self) -> Number | None:
        """The objective of the step that ends now."""
        taken = None if self.unsure else self._given if self.total is None else self.total
        self.clear()
        return taken

    def clear(self) -> None:
        """Forget what was collected."""
        self.total, self.passes, self._after, self._settled = None, 0, (), False
        self.unsure = False
        self._given, self._gave = None, False


def added(total: Number | None, value: Number | None) -> Number | None:
    """The sum of two objectives, of which each may be unknown."""
    if value is None or total is None:
        return total if value is None else value
    if isinstance(total, Tensor) and isinstance(value, Tensor):
        return total + value.to(total.device, non_blocking=True)
    return total + value


def _any_nonzero(gradients: Sequence[Tensor]) -> Tensor | None:
    """bool (): is any number of the smallest of these gradients not zero?"""
    dense = sorted((g for g in gradients if g.layout == torch.strided), key=Tensor.numel)[:WITNESSES]
    return torch.stack([g.any().to(dense[0].device) for g in dense]).any() if dense else None


def _entry(p: nn.Parameter, kept_by: Mapping[int, Any]) -> tuple[int, int, int]:
    g = gradient(p, kept_by) if kept_by else p.grad
    return (p._version, 0, 0) if g is None else (p._version, id(g), g._version)
