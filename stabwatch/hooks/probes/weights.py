"""The deep tier at the optimizer step: spectra of matrices, direction of updates, Adam's moments, narrower formats.

Layers take turns, so that no step carries all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.accumulators import Accumulators
from stabwatch.hooks.base.copies import Copies
from stabwatch.hooks.base.sampling import some_rows
from stabwatch.hooks.base.tensors import local
from stabwatch.hooks.probes.last_update import LastChanges
from stabwatch.hooks.probes.spectra import Spectra, of_updates, of_weights
from stabwatch.kernels.direction import adam, direction, invariance, radial, together
from stabwatch.kernels.exponent_histogram import exponents
from stabwatch.kernels.precision import precision
from stabwatch.runlog import Accumulator

CLOSURE = "the optimizer computes gradients inside its step (a closure)"
SHARDED = "this rank holds only a part of the matrix"


@dataclass
class Member:
    """A parameter, the layer where it belongs, the layer's place in the turns, and its spectra."""

    layer: str
    parameter: nn.Parameter
    index: int
    spectra: Spectra


class DeepParameters:
    """Cells by layer (`_LAYER_CELLS`) and by matrix ('spectrum').

    counts: does this rank count a parameter? Another rank may hold the same.
    """

    def __init__(
        self, model: nn.Module, tracked: Iterable[tuple[str, str, nn.Parameter]], device: torch.device, watch: Any
    ) -> None:
        self._watch = watch
        self.counts: Callable[[nn.Parameter], bool] = lambda parameter: True
        modules = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
        tracked = [(layer, name, p) for layer, name, p in tracked if p.is_floating_point()]
        layers = list(dict.fromkeys(layer for layer, _, _ in tracked))
        places = {layer: i for i, layer in enumerate(layers)}
        self._members = {
            id(p): Member(layer, p, places[layer], Spectra(name, p, modules.get(id(p)))) for layer, name, p in tracked
        }
        cells = [
            Accumulator("step", "", "descent"),
            *(Accumulator(tap, layer, r) for layer in layers for tap, r in _LAYER_CELLS),
        ]
        for m in self._members.values():
            cells += [
                Accumulator(tap, name, "spectrum") for name in m.spectra.names for tap in ("matrix", "matrix_update")
            ]
        self.store = Accumulators(cells, device)
        self._copies = Copies()
        self._held: list[tuple[Member, Tensor]] = []
        self._invariant: dict[int, Tensor] = {}
        self._last = LastChanges()

    @torch.no_grad()
    def before(self, optimizer: Any, closure: bool = False) -> None:
        """Gradients and parameters of the layers whose turn it is, by formats; the parameters are copied.

        Before a step with a closure the gradients are those of the last step, and are not looked at.
        """
        mine = self._due(optimizer, self._watch.flags.phase)
        self._held = list(zip(mine, self._copies.of([local(m.parameter) for m in mine]), strict=True))
        self._run("precision", self._weight_formats, mine)
        if closure:
            self._without_gradients(mine)
            return
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer unscales inside its own kernel
        self._run("precision", self._gradient_formats, mine, scale)
        self._run("exponents", self._exponents, mine, scale)
        self._run("descent", self._descent, mine)
        self._run("descent", self._whole_descent, optimizer)
        self._run("radial", self._test_invariance, mine)

    @torch.no_grad()
    def after(self, optimizer: Any) -> None:
        """What the step did to them, and the optimizer's state."""
        held, self._held = self._held, []
        changes = [(m, old, local(m.parameter).float() - old.float()) for m, old in held]
        self._run("direction", self._directions, changes)
        self._run("radial", self._radial, changes)
        self._run("successive", self._successive, changes)
        self._run("adam", self._moments, [m for m, _, _ in changes], optimizer)
        self._run("spectrum", self._all_spectra, changes)

    @torch.no_grad()
    def before_phase(self, optimizer: Any, turn: int) -> None:
        """The next step is the turn's: some numbers of its parameters are copied, to see what this one does."""
        mine = self._due(optimizer, turn)
        self._last.snapshot([local(m.parameter) for m in mine])

    def after_phase(self) -> None:
        """Keep what the step did to them, until the next step."""
        self._last.keep(self._watch.step)

    def _run(self, probe: str, action: Any, *args: Any) -> None:
        self._watch.isolation.run(probe, "deep", action, *args)

    def _without_gradients(self, members: list[Member]) -> None:
        self._invariant = {}
        self._watch.unmeasured("descent", "", CLOSURE)
        for layer in dict.fromkeys(m.layer for m in members):
            for what in ("exponents", "descent", "radial"):
                self._watch.unmeasured(what, layer, CLOSURE)

    def _weight_formats(self, members: list[Member]) -> None:
        for m in members:
            weight = local(m.parameter)
            if weight.numel():
                self.store.update("weight", m.layer, "precision", precision(some_rows(weight)))

    def _gradient_formats(self, members: list[Member], scale: Any) -> None:
        for m in members:
            grad = local(m.parameter.grad)
            if _dense(grad):
                self.store.update("gradient", m.layer, "precision", precision(_gradient_rows(grad, scale)))

    def _exponents(self, members: list[Member], scale: Any) -> None:
        for m in members:
            grad = local(m.parameter.grad)
            if _dense(grad):
                self.store.update("gradient", m.layer, "exponents", exponents(_gradient_rows(grad, scale)))

    def _descent(self, members: list[Member]) -> None:
        for m in members:
            grad = local(m.parameter.grad)
            if grad.numel() and not grad.is_sparse:
                self.store.update("gradient", m.layer, "descent", _opposite(direction(grad, local(m.parameter))))

    def _whole_descent(self, optimizer: Any) -> None:
        """Of all that the optimizer steps, at every deep step: a cosine of parts is none of the whole."""
        pairs = [(local(m.parameter.grad), local(m.parameter)) for m in self._of(optimizer) if _dense(m.parameter.grad)]
        for device in dict.fromkeys(w.device for _, w in pairs):
            gradients, weights = zip(*(pair for pair in pairs if pair[1].device == device), strict=True)
            self.store.update("step", "", "descent", _opposite(together(gradients, weights)))

    def _test_invariance(self, members: list[Member]) -> None:
        self._invariant = {}
        for m in members:
            weight, grad = local(m.parameter), local(m.parameter.grad)
            if weight.shape != m.parameter.shape:
                self._watch.unmeasured("radial", m.layer, SHARDED)
            elif weight.dim() > 1 and weight.numel() and not grad.is_sparse:
                self._invariant[id(m.parameter)] = found = invariance(weight, grad)
                size = torch.full((), float(weight.numel()), device=weight.device)
                self.store.update("update", m.layer, "invariance", torch.stack((size, size * found.any())))

    def _radial(self, changes: list[tuple[Member, Tensor, Tensor]]) -> None:
        found, self._invariant = self._invariant, {}
        for m, old, change in changes:
            if id(m.parameter) in found:
                self.store.update("update", m.layer, "radial", radial(change, old, found[id(m.parameter)]))

    def _successive(self, changes: list[tuple[Member, Tensor, Tensor]]) -> None:
        for m, _, change in changes:
            partials = self._last.compare(local(m.parameter), change, self._watch.step)
            if partials is not None:
                self.store.update("update", m.layer, "successive", partials)

    def _directions(self, changes: list[tuple[Member, Tensor, Tensor]]) -> None:
        for m, old, change in changes:
            self.store.update("update", m.layer, "direction", direction(change, old))

    def _moments(self, members: list[Member], optimizer: Any) -> None:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for m in members:
            state, group = optimizer.state.get(m.parameter, {}), groups[id(m.parameter)]
            if {"exp_avg", "exp_avg_sq", "step"} <= state.keys() and {"eps", "betas"} <= group.keys():
                betas = float(group["betas"][0]), float(group["betas"][1])
                moments = local(state["exp_avg"]), local(state["exp_avg_sq"])
                found = adam(*moments, float(group["eps"]), state["step"], betas)
                self.store.update("optimizer", m.layer, "adam", found)

    def _all_spectra(self, changes: list[tuple[Member, Tensor, Tensor]]) -> None:
        whole = [(m.spectra, local(m.parameter), change) for m, _, change in changes if _is_whole(m.parameter)]
        weights = [(spectra, weight) for spectra, weight, _ in whole if spectra.names]
        updates = [(spectra, change) for spectra, _, change in whole if spectra.names]
        for spectra, partials in of_weights(weights):
            self._update("matrix", spectra, partials)
        for spectra, partials in of_updates(updates):
            self._update("matrix_update", spectra, partials)
        for name in (n for m, _, _ in changes if not _is_whole(m.parameter) for n in m.spectra.names):
            self._watch.unmeasured("matrix", name, SHARDED)

    def _update(self, tap: str, spectra: Spectra, partials: Tensor) -> None:
        for name, row in zip(spectra.names, partials, strict=True):
            self.store.update(tap, name, "spectrum", row)

    def _due(self, optimizer: Any, turn: int) -> list[Member]:
        turns = self._watch.flags.phases
        return [m for m in self._of(optimizer) if m.index % turns == turn and m.parameter.grad is not None]

    def _of(self, optimizer: Any) -> list[Member]:
        params = (p for group in optimizer.param_groups for p in group["params"])
        return [self._members[id(p)] for p in params if id(p) in self._members and self.counts(p)]


_LAYER_CELLS = (
    ("update", "direction"), ("update", "invariance"), ("update", "radial"), ("update", "successive"),
    ("optimizer", "adam"), ("gradient", "precision"), ("gradient", "exponents"), ("gradient", "descent"),
    ("weight", "precision"),
)  # fmt: skip


def _is_whole(parameter: Tensor) -> bool:
    """Not a shard of it."""
    return local(parameter).shape == parameter.shape


def _dense(gradient: Tensor | None) -> bool:
    return gradient is not None and not gradient.is_sparse and gradient.numel() > 0


def _opposite(partials: Tensor) -> Tensor:
    """Of minus the gradient."""
    partials[1].neg_()
    return partials


def _gradient_rows(gradient: Tensor, scale: Any) -> Tensor:
    """Some of its rows, without the loss scale."""
    rows = some_rows(gradient)
    return rows.float() / scale.to(rows.device, non_blocking=True) if isinstance(scale, Tensor) else rows
