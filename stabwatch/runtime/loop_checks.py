"""How the training loop treats the model: gradients that are kept, evaluation mode, an optimizer without its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from stabwatch.hooks.base.run_accumulators import REFROZEN, THROWN, UNCHANGED, UNITS, RunAccumulators
from stabwatch.hooks.base.tensors import local
from stabwatch.runtime.rewrites import Rewrites

WITNESSES = 8
"""Parameters of an optimizer whose gradients are looked at: the smallest ones of as many parts of the model."""
FEWEST_PASSES = 3
"""Backward passes of a step from which on they are micro-batches: two are a step that looks ahead (SAM)."""


LOADED = frozenset(("PreTrainedModel", "ModelMixin"))
"""Classes of models that their libraries give in evaluation mode: transformers, diffusers."""


class Modes:
    """Which layers with dropout or batch norm are in evaluation mode, of those that were in the other one.

    Those of a model from a library that gives it in evaluation mode count from the start: nobody has asked for it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            (module, parent)
            for parent in model.modules()
            for module in parent.children()
            if parent is not model and _has_modes(module)
        ]
        self._count = sum(map(_has_modes, model.modules()))
        self._trained: set[int] = set()
        self._loaded = [m for m in model.modules() if m is not model and _is_loaded(m)]

    def evaluating(self) -> float:
        """Their share of all, where the part that they are in is in evaluation mode too, and has what is trained."""
        found = 0
        left = {id(m) for whole in self._loaded if _is_left(whole) for m in whole.modules()}
        for module, parent in self._layers:
            if module.training:
                self._trained.add(id(module))
            elif not parent.training and (id(module) in self._trained or id(module) in left):
                found += any(p.requires_grad for p in parent.parameters())
        return found / self._count if found else 0.0


class LoopChecks:
    """What a step of one watch says of its loop. Nothing here waits for the device."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._witnesses: WeakKeyDictionary[Any, list[nn.Parameter]] = WeakKeyDictionary()
        self._kept: WeakKeyDictionary[Any, Tensor | float | None] = WeakKeyDictionary()
        """Of each optimizer the least share over the backward passes since it stepped."""
        self._told: WeakKeyDictionary[Any, Tensor | float | None] = WeakKeyDictionary()
        """The same, of those that stepped in the open step: at their steps."""
        self._had_state: dict[tuple[str, int, int], bool] = {}
        self._stepped = False
        self._reached = 0
        """Backward passes that reached the model since an optimizer stepped."""
        self._found: list[Tensor | float] = []
        """Shares of the gradients that were there when each of them but the first began."""
        self._sampled = False
        self._modes, self._evaluating = Modes(model), 0.0
        self._last: list[Tensor | None] = []
        self._frozen: WeakKeyDictionary[Any, list[nn.Parameter]] = WeakKeyDictionary()
        """Of each optimizer the parameters that required no gradient when it was first seen, and had a state."""
        self.rewrites = Rewrites()

    def model_changed(self) -> None:
        """It has other parameters: those of each optimizer are looked at again from its next step on."""
        for of_optimizers in (self._witnesses, self._kept, self._told):
            of_optimizers.clear()
        self._stepped = False
        self.rewrites.model_changed()

    @torch.no_grad()
    def backward_begins(self, sampled: bool = False) -> None:
        """A backward pass begins: are gradients of earlier steps, or of the pass before, still there?

        sampled: more is measured in this step. The answer is kept for each optimizer until it steps: where each has its
        own backward pass, the others are not set to zero yet.
        """
        if not self._stepped:
            return
        self._sampled = sampled
        if sampled and self._reached:
            shares = [_share_that_is_not_empty(mine) for mine in self._witnesses.values()]
            self._found += [share for share in shares if share is not None]
        for optimizer, mine in self._witnesses.items():
            kept = self._kept.get(optimizer)
            if kept != 0.0:
                self._kept[optimizer] = _smaller(kept, _share_that_is_not_empty(mine))

    def other_stepped(self) -> None:
        """An optimizer of another model steps: it took the passes before, as a critic those through a generator."""
        self._reached, self._found = 0, []

    def pass_ended(self) -> None:
        """A backward pass has reached the model."""
        self._reached += 1
        if self._reached >= FEWEST_PASSES:
            self._last = [p.grad for mine in self._witnesses.values() for p in mine]

    def _thrown(self) -> Tensor | float | None:
        """1 if each pass since the last step found the gradients of the one before gone, else 0.

        None with fewer than three passes, and where the program puts gradients of its own in their place.
        """
        reached, found, self._reached, self._found = self._reached, self._found, 0, []
        if not self._sampled or not self._stepped or reached < FEWEST_PASSES:
            return None
        now = (p.grad for mine in self._witnesses.values() for p in mine)
        if any(a is not b for a, b in zip(now, self._last, strict=False)):
            return None
        most = _largest(found)
        return (most == 0).float() if isinstance(most, Tensor) else float(most == 0.0)

    def take_kept(self) -> Tensor | float | None:
        """Of each optimizer that stepped the least share over the backward passes since its last step: the largest.

        float32 (); None without any, and on several devices.
        """
        kept = [share for share in self._told.values() if share is not None]
        self._told.clear()
        self._stepped = bool(self._witnesses)
        devices = {share.device for share in kept if isinstance(share, Tensor)}
        return _largest(kept) if kept and len(devices) < 2 else None

    def step_unseen(self) -> None:
        """A step ends whose backward passes were not looked at: who did not step may have been set to zero in it."""
        for optimizer in self._witnesses:
            if optimizer not in self._told:
                self._kept[optimizer] = 0.0
        self._told.clear()

    def before_step(self, optimizer: Any, run: RunAccumulators, reached: bool) -> None:
        """An optimizer is about to step: note what can be seen then. reached: by a backward pass, in this step.

        Some of its parameters are looked at from the next step on.
        """
        changed, thrown = self.rewrites.step_begins(), self._thrown()
        if changed is not None:
            run.update_rewritten(changed)
        if thrown is not None:
            run.note(THROWN, thrown)
        self.rewrites.before_step(optimizer, reached)
        if (frozen := self._refrozen(optimizer)) is not None:
            run.note(REFROZEN, frozen)
        if optimizer in self._witnesses:
            self._told[optimizer] = self._kept.pop(optimizer, None)
            return
        self.rewrites.follow(optimizer)
        if not self._witnesses and (alike := self.rewrites.alike(optimizer)) is not None:
            run.note(UNITS, alike)
        mine = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        length = max(1, -(-len(mine) // WITNESSES))
        parts = [mine[i : i + length] for i in range(0, len(mine), length)]
        if parts:
            self._witnesses[optimizer] = [min(part, key=nn.Parameter.numel) for part in parts]

    def _refrozen(self, optimizer: Any) -> float | None:
        """Share of the numbers of an optimizer that are frozen and that it stepped before it was first seen.

        Of those it has a state by then. None where there are none, and between the steps at which that is looked at.
        """
        held = [p for group in optimizer.param_groups for p in group["params"]] if self._looks_at(optimizer) else []
        if held and optimizer not in self._frozen:
            state = getattr(optimizer, "state", {})
            self._frozen[optimizer] = [p for p in held if not p.requires_grad and state.get(p)]
        first = self._frozen.get(optimizer)
        if not first or not held:
            return None
        frozen = sum(p.numel() for p in first if not p.requires_grad)
        return frozen / max(1, frozen + sum(p.numel() for p in held if p.requires_grad))

    def _looks_at(self, optimizer: Any) -> bool:
        return optimizer not in self._frozen or (self.rewrites.due and bool(self._frozen[optimizer]))

    def after_step(self, run: RunAccumulators, rate: float) -> None:
        """It has stepped, at this rate: has that changed anything? Nothing where all of the model is frozen."""
        self.rewrites.stepped()
        unchanged = self.rewrites.after_step()
        if self.rewrites.due and not any(p.requires_grad for p in self._model.parameters()):
            run.note(UNCHANGED, 1.0)
        elif unchanged is not None and rate != 0:
            run.note(UNCHANGED, unchanged)

    def evaluating(self, look: bool = False) -> float:
        """Share of the layers that compute something else in evaluation mode (dropout, batch norm) and are in it.

        In a model in training mode those count that were trained in training mode before, in a part that is in
        evaluation mode as a whole and is trained: who freezes batch norm alone leaves the layers beside it as they are.
        look: at the parts, again.
        """
        if not self._model.training:
            return float(any(_has_modes(module) for module in self._model.modules()))
        if look:
            self._evaluating = self._modes.evaluating()
        return self._evaluating

    @property
    def has_modes(self) -> bool:
        """Does any layer compute something else in evaluation mode?"""
        return any(_has_modes(module) or _drops_within(module) for module in self._model.modules())

    def lost_state(self, optimizer: Any) -> bool:
        """Asked before each step: has an optimizer of this class had a state of these parameters, and has none now?"""
        state = getattr(optimizer, "state", None)
        if not isinstance(state, dict):
            return False
        held = [group["params"] for group in optimizer.param_groups]
        first = next((params[0] for params in held if params), None)
        key = type(optimizer).__qualname__, sum(map(len, held)), id(first)
        had, self._had_state[key] = self._had_state.get(key, False), bool(state)
        return had and not state


def _has_modes(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _drops_within(module: nn.Module) -> bool:
    """Has a layer of torch dropout that is no module of its own?"""
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0


def _is_loaded(module: nn.Module) -> bool:
    return any(kind.__name__ in LOADED for kind in type(module).__mro__)


def _is_left(whole: nn.Module) -> bool:
    """It is in evaluation mode, and trained as a whole."""
    held = [] if whole.training else list(whole.parameters())
    return all(p.requires_grad for p in held) and any(p.grad is not None for p in held)


def _largest(shares: Sequence[Tensor | float]) -> Tensor | float:
    """The largest of some shares; 1 if there are none, or on several devices."""
    on_device = [share for share in shares if isinstance(share, Tensor)]
    if not on_device:
        return max((share for share in shares if not isinstance(share, Tensor)), default=1.0)
    same = all(share.device == on_device[0].device for share in on_device)
    return torch.stack(on_device).amax() if same else 1.0


def _smaller(one: Tensor | float | None, other: Tensor | float | None) -> Tensor | float | None:
    """The smaller of two shares; None is not known."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.minimum(one, other)
    return one if other is None else other if one is None or isinstance(one, Tensor) else one


def _share_that_is_not_empty(parameters: Sequence[nn.Parameter]) -> Tensor | float | None:
    """Share of the parameters whose gradient has a number that is not zero; 0.0 where all gradients are None."""
    given = [local(p.grad) for p in parameters if p.grad is not None and p.grad.layout == torch.strided]
    if not given:
        return 0.0 if parameters else None
    device = given[0].device
    found = [g.any().to(device, torch.float32, non_blocking=True) for g in given]
    return torch.stack(found).sum() / len(parameters)
