"""Where a value that is not finite is made: in the data, the weights, the forward, the loss, the backward, the update.

While all is finite, next to nothing is done: the loss is read before each backward pass, and a few gradients before
each step. If the loss is not finite, autograd's graph and the optimizer's state say where that began.
On the host alone: to read a number of an accelerator would mean to wait for it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stabwatch.hooks.base.tensors import tensors_in
from stabwatch.hooks.base.trace import PLAIN, Call, Forward, ForwardTrace, spoiled
from stabwatch.hooks.base.tracked import TrackedParameter
from stabwatch.hooks.graph import Birth, Graph
from stabwatch.hooks.probes.trained_loss import objective_on_host

Place = Literal["data", "weights", "forward", "loss", "gradient", "update", "buffer", "unknown"]
WITNESSES = 3
"""Parameters whose gradients are looked at before each step, spread from the first to the last: small ones.
What is not finite in the gradient of one layer reaches those before it."""
WITNESS_NUMBERS = 4096
"""Most numbers of such a parameter."""
MOST_TRACED = 32
"""Origins that are looked for in one run."""
MOST_LAYERS = 16
_VERSION = attrgetter("_version")
_MOMENTS = ("exp_avg", "momentum_buffer", "exp_avg_sq", "square_avg", "sum")


@dataclass(frozen=True)
class Origin:
    """Where the first value that is not finite of a step was made, as far as it is known.

    step: where it was seen. since: where it was made. layers: the first one comes first; of gradients, those next to
    the loss. after: what came before it with finite values, '' if that is not known. loss: of step `since`, None if
    it is not known. facts: what else is known, plain data.
    """

    place: Place
    step: int
    since: int
    layers: tuple[str, ...] = ()
    after: str = ""
    loss: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """The data of a `nonfinite` event."""
        loss = None if self.loss is None else self.loss if math.isfinite(self.loss) else repr(self.loss)
        return {
            "place": self.place, "since": self.since, "layers": list(self.layers[:MOST_LAYERS]), "after": self.after,
            "loss": loss, **self.facts,
        }  # fmt: skip


class NonFiniteTrace:
    """Traces what is not finite in the steps of one model back to where it was made.

    parameters: those that are trained. found: called with each origin, once for each unbroken run of steps that are not
    finite. alone: no other process has a part of the gradients, which may have brought the value.
    """

    def __init__(
        self,
        forward: ForwardTrace,
        parameters: Callable[[], Sequence[TrackedParameter]],
        found: Callable[[Origin], None],
        alone: Callable[[], bool],
    ) -> None:
        self._forward = forward
        self._tracked = parameters
        self._found = found
        self._alone = alone
        self._looked_at: Sequence[TrackedParameter] | None = None
        self._witnesses: list[nn.Parameter] = []
        self._parameters: list[nn.Parameter] = []
        self._versions: list[int] = []
        self._stepped_at: int | None = None
        self._optimizer: Any = None
        self._losses: list[tuple[weakref.ref[Tensor], float]] = []
        """First root and value of the finite losses of the step, of whatever model."""
        self._forwards = 0
        """Forwards of this model in the step."""
        self._last_loss: float | None = None
        self._held: Origin | None = None
        self._checked = False
        self._bad_at = -2
        self._left = MOST_TRACED
        self._objective: tuple[int, float | None] = 0, None
        """Of the backward pass that began last: the id of its roots, and its objective, where the host knows it."""

    # -- what the training loop does ------------------------------------------------------------------

    def backward_begins(self, step: int, roots: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> None:
        """A backward pass is about to begin, which may be one of this model."""
        value = objective_on_host(roots, gradients)
        self._objective = id(roots), value
        forwards = [forward for forward in self._forward.forwards if forward.end >= 0]
        self._forwards += len(forwards)
        self._checked = False
        if value is not None and math.isfinite(value):
            self._losses.append((weakref.ref(roots[0]), value))
        elif value is not None and self._is_new(step):
            with torch.no_grad():
                self._trace(step, value, roots, forwards)
        elif value is not None:
            self._bad_at = step
        self._forward.clear()

    def objective_of(self, roots: Sequence[Tensor]) -> float | None:
        """That of the backward pass that began last, at these roots; None where it is not known on the host."""
        begun, value = self._objective
        return value if begun == id(roots) else None

    def _trace(self, step: int, value: float, roots: Sequence[Tensor], forwards: Sequence[Forward]) -> None:
        graph = Graph(roots, {id(t.parameter): _module(t) for t in self._tracked()})
        if graph.mine:
            self._tell(self._of_weights(step, value, graph) or _of_forward(step, value, graph, forwards, self))

    def gradients_complete(self, step: int) -> None:
        """The gradients are complete, and are about to be clipped, or used."""
        if self._checked:
            return
        self._checked = True
        if not self._is_new(step) or not self._alone():
            return
        if self._witnesses_are_finite():
            return
        with torch.no_grad():
            bad = {t.layer for t in self._tracked() if _bad_gradient(t.parameter)}
            if bad:
                self._held = self._of_gradients(step, bad)

    def before_step(self, step: int, closure: bool) -> None:
        """An optimizer is about to step: now gradients that are not finite do harm, as no scaler has kept them back."""
        if not closure:
            self.gradients_complete(step)
        held, self._held = self._held, None
        if held is not None and held.step == step and not closure:
            self._tell(held)

    def stepped(self, step: int, optimizer: Any) -> None:
        """An optimizer has stepped."""
        self._stepped_at, self._optimizer = step, optimizer
        self._follow()
        self._versions = [*map(_VERSION, self._parameters)]
        values = [value for _, value in self._losses]
        self._last_loss = sum(values) if values and len(values) == self._forwards else None
        self._losses, self._forwards, self._held, self._checked = [], 0, None, False
        self._forward.inputs = ()

    # -- judging ------------------------------------------------------------------------------------

    def _is_new(self, step: int) -> bool:
        return step - self._bad_at > 1 and self._left > 0

    def _tell(self, origin: Origin) -> None:
        begun = self._is_new(origin.step)
        self._bad_at = origin.step
        if begun:
            self._left -= 1
            self._found(origin)

    def _follow(self) -> None:
        """The parameters of the model as it is now."""
        tracked = self._tracked()
        if tracked is not self._looked_at:
            self._looked_at = tracked
            self._parameters = [t.parameter for t in tracked if t.parameter.device.type == "cpu"]
            self._witnesses = _spread(self._parameters)

    def _of_weights(self, step: int, loss: float, graph: Graph) -> Origin | None:
        bad = [t for t in self._tracked() if _bad(t.parameter)]
        if not bad:
            return None
        parameters, facts = [t.parameter for t in bad], self._facts()
        names = {_module(t) for t in bad}
        layers = tuple(dict.fromkeys([name for name in graph.layers if name in names] + sorted(names)))
        if self._stepped_at is None:
            return Origin("weights", step, step, layers, loss=loss, facts={**facts, "before": "first step"})
        if not self._alone():
            return Origin("unknown", step, step, layers, loss=loss, facts={**facts, "before": "ranks"})
        if self._written_since(parameters):
            return Origin("weights", step, step, layers, loss=loss, facts={**facts, "before": "outside"})
        place, facts["remembered"] = self._blame(parameters)
        if place == "update" and all(_gives_finite(self._optimizer, p) for p in parameters):
            return Origin("weights", step, step, layers, loss=loss, facts={**facts, "before": "outside"})
        facts |= _epsilon(self._optimizer, parameters) if place == "update" else {}
        facts["optimizer"] = type(self._optimizer).__name__
        after = ""
        if place == "gradient":  # the layers behind the last one are finite: the value was made in between
            later = graph.layers[max(graph.layers.index(x) for x in layers if x in graph.layers) + 1 :]
            layers, after = (tuple(reversed(layers)), later[0]) if later else ((), "")
        return Origin(place, step, self._stepped_at, layers, after, self._last_loss, facts)

    def _written_since(self, parameters: Sequence[nn.Parameter]) -> bool:
        ids = set(map(id, parameters))
        return any(id(p) in ids and p._version != v for p, v in zip(self._parameters, self._versions, strict=False))

    def _blame(self, parameters: Sequence[nn.Parameter]) -> tuple[Place, bool]:
        """Whether the gradient of the last step or its update was not finite, and whether the state remembers it."""
        state = getattr(self._optimizer, "state", {})
        kept = [state.get(p) or {} for p in parameters]
        first = [s[name] for s in kept for name in _MOMENTS if isinstance(s.get(name), Tensor)]
        if first:
            return ("gradient" if any(map(_bad, first)) else "update"), True
        return ("gradient" if type(self._optimizer) is torch.optim.SGD else "update"), False

    def _of_gradients(self, step: int, bad: set[str]) -> Origin:
        have = {t.layer for t in self._tracked() if t.parameter.grad is not None}
        order = self._in_order(have)
        last = max(i for i, layer in enumerate(order) if layer in bad)
        after = order[last + 1] if last + 1 < len(order) else ""
        layers = tuple(layer for layer in reversed(order[: last + 1]) if layer in bad) if after else ()
        facts = {"passes": len(self._losses), "finite_layers": len(have - bad)}
        return Origin("gradient", step, step, layers, after, self._finite_loss(), facts)

    def _finite_loss(self) -> float | None:
        """The loss of the step, where all of its backward passes are known to be those of this model."""
        owners = {id(t.parameter): t.layer for t in self._tracked()}
        roots = [root() for root, _ in self._losses]
        known = bool(roots) and all(root is not None and Graph([root], owners).mine for root in roots)
        return sum(value for _, value in self._losses) if known else None

    def _in_order(self, layers: set[str]) -> list[str]:
        """Layers in the order in which their modules returned in the last forward; others as they are declared."""
        declared = list(dict.fromkeys(t.layer for t in self._tracked()))
        called = self._forward.order
        place = {name: i for i, name in reversed(list(enumerate(called)))}
        return sorted(layers, key=lambda name: (place.get(name, len(called)), declared.index(name)))

    def _facts(self) -> dict[str, Any]:
        return {"passes": len(self._losses) + 1}

    def _witnesses_are_finite(self) -> bool:
        self._follow()
        squares = 0.0
        for p in self._witnesses:
            g = p.grad
            if g is not None and type(g) in PLAIN and g.layout is torch.strided:
                squares += _squares(g)
        return math.isfinite(squares)


def _squares(gradient: Tensor) -> float:
    """Not finite if one of its numbers is not, or if their squares are too large to be added up."""
    own = gradient.detach() if gradient.requires_grad else gradient
    if own.dim() == 1 and own.dtype is torch.float32:
        return float(torch.dot(own, own).item())
    numbers = (own if own.element_size() > 2 else own.float()).numpy()
    return float(np.vdot(numbers, numbers).real)


def _module(tracked: TrackedParameter) -> str:
    return tracked.name.rpartition(".")[0] or tracked.layer


def _of_forward(step: int, loss: float, graph: Graph, forwards: Sequence[Forward], trace: NonFiniteTrace) -> Origin:
    """The weights are finite: the value was made in the data, in the forward or after it."""
    finite = bool(forwards) and all(forward.finite is True and not forward.own_loss for forward in forwards)
    birth, facts = graph.birth(max(f.end for f in forwards) if finite else -1), trace._facts()
    if birth is None or not forwards:
        return Origin("unknown", step, step, loss=loss, facts=facts)
    facts |= {"operation": birth.operation, "grown": birth.grown, "dtype": birth.dtype}
    if birth.operation == "the mean over no targets":
        facts["targets"] = 0
    outside = birth.first > birth.last  # a layer was the first to get it: no mask, where -inf is none
    spoiled_inputs = any(spoiled(x, not outside) for forward in forwards for x in tensors_in(forward.inputs))
    inside = next((f for f in forwards if f.start <= max(birth.last, birth.first) < f.end), None)
    if birth.target:
        return Origin("data", step, step, (), birth.before, loss, facts | {"target": True})
    if inside is None or (inside.finite and not inside.own_loss):
        return _after_forward(step, loss, birth, forwards, facts)
    layers, after, tail = _located(birth, inside, _calls(trace._forward, inside, birth))
    if spoiled_inputs and not birth.operation:
        return Origin("data", step, step, layers, "", loss, facts)
    if tail and inside.own_loss and inside.finite is not False:
        return Origin("loss", step, step, (), after, loss, facts)
    return Origin("forward", step, step, layers, after, loss, facts)


def _after_forward(step: int, loss: float, birth: Birth, forwards: Sequence[Forward], facts: dict[str, Any]) -> Origin:
    """The value was seen after the model had returned."""
    known = [forward.finite for forward in forwards]
    if False in known and not birth.operation:
        return Origin("forward", step, step, (birth.before,) if birth.before else (), "", loss, facts)
    end = max(forward.end for forward in forwards)
    if birth.last < end:
        facts["operation"] = ""  # its result did not reach the output
    facts["outside"] = birth.first > birth.last
    certain = birth.first >= end or None not in known
    facts["outputs"] = None not in known and False not in known
    return Origin("loss" if certain else "unknown", step, step, (), birth.before, loss, facts)


def _calls(trace: ForwardTrace, forward: Forward, birth: Birth) -> Sequence[Call]:
    """The calls in a forward. Of one that is longer or shorter than the last whose calls were noted, those that fit.

    The nodes that are more or less are taken to be where the value was made. That is believed if the module is around a
    layer whose parameters were used last before it, or first after it.
    """
    known = trace.calls(forward)
    if known or not trace.pattern:
        return known
    more, found = forward.end - forward.start - trace.length, []
    low, high = min(birth.first, birth.last + 1), max(birth.first, birth.last)
    for call in trace.pattern:
        start, end = forward.start + call.start, forward.start + call.end
        if end <= low:
            found.append(Call(call.name, start, end))
        elif start + more > high:
            found.append(Call(call.name, start + more, end + more))
        elif start <= low and end + more > high:
            found.append(Call(call.name, start, end + more))
    layers, _, _ = _located(birth, forward, found)
    fits = [name for name in layers if f"{birth.before}.".startswith(f"{name}.") or birth.after.startswith(name)]
    return found if fits else ()


def _located(birth: Birth, forward: Forward, calls: Sequence[Call]) -> tuple[tuple[str, ...], str, bool]:
    """Where in a forward it was made: layers, the one before, and whether nothing of the model comes after it."""
    low, high = min(birth.first, birth.last + 1), max(birth.first, birth.last)
    around = [c for c in calls if c.name and c.start <= low and high < c.end]
    given = birth.first > birth.last
    if around and not given:
        call = min(around, key=lambda c: c.end - c.start)
        before = [c for c in calls if c.name and c.end <= low]
        return (call.name,), max(before, key=lambda c: (c.end, c.start)).name if before else "", False
    if calls:
        at = birth.seen if given else low
        later = [c for c in calls if c.name and (c.start <= at < c.end if given else c.start > high)]
        first = min(later, key=lambda c: (c.start, -c.end) if not given else (c.end - c.start, 0)) if later else None
        before = [c for c in calls if c.name and c.end <= low]
        last = max(before, key=lambda c: (c.end, c.start)).name if before else ""
        if first is not None:
            return (first.name,), last, False
        return ((last,) if last else ()), last, True
    return _between_layers(birth)


def _between_layers(birth: Birth) -> tuple[tuple[str, ...], str, bool]:
    """The same where the calls of modules are not known: from the layers whose parameters were used around it."""
    if not birth.after:
        return ((birth.before,) if birth.before else ()), birth.before, True
    return (birth.after,), birth.before if birth.before != birth.after else "", False


def _bad(x: Tensor) -> bool:
    """Does a tensor on the host hold a number that is not finite?"""
    x = x.detach()
    if x.device.type != "cpu" or x.layout != torch.strided or not (x.is_floating_point() or x.is_complex()):
        return False
    return type(x) in PLAIN and not torch.isfinite(x).all()


def _bad_gradient(p: nn.Parameter) -> bool:
    return p.grad is not None and _bad(p.grad.coalesce().values() if p.grad.is_sparse else p.grad)


def _spread(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Some small parameters: the first, the last, and others between them."""
    some = [p for p in parameters if p.numel() <= WITNESS_NUMBERS and p.is_floating_point() and type(p.data) is Tensor]
    small = [p for p in some if p.dim() < 2] or some
    places = {round(i * (len(small) - 1) / max(WITNESSES - 1, 1)) for i in range(WITNESSES)}
    return [small[i] for i in sorted(places) if 0 <= i < len(small)]


def _gives_finite(optimizer: Any, p: nn.Parameter) -> bool:
    """Is the optimizer one of Adam's kind, whose state shows that its last update of a parameter was finite?"""
    kept = getattr(optimizer, "state", {}).get(p) or {}
    m, v = kept.get("exp_avg"), kept.get("exp_avg_sq")
    eps = next((g.get("eps") for g in optimizer.param_groups if any(p is q for q in g["params"])), None)
    if not (isinstance(m, Tensor) and isinstance(v, Tensor) and isinstance(eps, float) and m.shape == v.shape):
        return False
    return not _bad(m / (v.sqrt() + torch.tensor(eps, dtype=v.dtype)))


def _epsilon(optimizer: Any, parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
    """The optimizer's epsilon, and the type of the parameters in which it is zero, if there is such a one."""
    mine = {id(p): p for p in parameters}
    for group in getattr(optimizer, "param_groups", ()):
        eps = group.get("eps")
        for p in group["params"]:
            if id(p) in mine and isinstance(eps, float) and eps > 0 and not torch.tensor(eps, dtype=p.dtype).item():
                return {"epsilon": eps, "dtype": str(p.dtype).removeprefix("torch.")}
    return {}
