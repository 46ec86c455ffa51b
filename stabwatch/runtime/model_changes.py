"""Changes of the model while it is watched: when to look for them, and what to say of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from stabwatch.hooks.base.calls import inside_functional_call, outermost
from stabwatch.hooks.base.structure import Structure, is_managed
from stabwatch.runtime.model_taps import ModelTaps

AT_ONCE = 16
"""Changes of a model that are followed at once; a model that changes more often is looked at less and less often."""
NAMED = 3
"""Names in a sentence."""
MOST_FROZEN = 32
"""Reports that parameters were frozen or unfrozen again."""
OPTIMIZERS = 64
"""Most optimizers whose parameters are counted; a loop may make a new one for each step."""
TOO_OFTEN = (
    "the model changes again and again; it is looked at less often now, and what it has only in between is not measured"
)


class ModelChanges:
    """Decides whether the hooks have to be renewed, because the model consists of something else than before."""

    def __init__(self) -> None:
        self._managed = self.pending = False
        """pending: it has changed, and is to be looked at between forwards."""
        self._followed = 0
        self._from = 0
        self._frozen_reports = 0
        self._frozen: frozenset[str] | None = None
        self._held: dict[int, int] = {}
        """Optimizer, by id -> how many parameters it held at its last step."""

    @property
    def too_many(self) -> bool:
        """The model has changed so often that it is not followed at once any more."""
        return self._followed > AT_ONCE

    def wrapped(self, structure: Structure, whole: nn.Module) -> bool:
        """The model is called through these wrappers; returns whether they hold parameters of their own."""
        own = structure.lacks(whole)
        self._managed = is_managed(whole)
        self.pending = own and self._managed
        return own and not self._managed

    def regrouped(self, structure: Structure, model: nn.Module) -> bool:
        """Asked when a training forward begins, and the ranks of the job are known now, which the hooks depend on."""
        self._managed = self.pending = self._managed or is_managed(outermost(model))
        return not self._managed

    def in_forward(self, structure: Structure, model: nn.Module, watched: int) -> bool:
        """Asked when a training forward begins. watched: steps so far.

        A library may exchange parameters for the time of a forward; such models are looked at between forwards.
        """
        if self._managed or watched < self._from:
            return False
        if not structure.changed() and (watched or not structure.freezing_changed()):
            return False
        if is_managed(outermost(model)):
            self._managed = self.pending = True
            return False
        return not structure.parameters_are_lent and not inside_functional_call()

    def grown(self, structure: Structure, found: bool) -> bool:
        """Asked when a training forward begins. found: there is more to measure than before.

        Modules were seen that a forward calls several times, or the user has described a quantiser.
        """
        self.pending = self.pending or (found and self._managed)
        return found and not self._managed

    def seen_in_forward(self, watched: int, forwards: int) -> bool:
        """Was the model looked at in this step already? In its first step lazy modules appear after that."""
        return bool(watched and forwards) and not self._managed and not self.pending

    def regrouped_for(self, optimizer: Any) -> bool:
        """Does this optimizer hold more parameters than before, or fewer? A forward may have made them."""
        held = sum(len(group["params"]) for group in optimizer.param_groups)
        before = self._held.get(id(optimizer))
        if before is None and len(self._held) >= OPTIMIZERS:
            self._held.clear()
        self._held[id(optimizer)] = held
        return held != before

    def between(self, structure: Structure, watched: int) -> bool:
        """Asked when an optimizer is about to step, and at the end of a step."""
        if self.pending:
            return True
        return watched >= self._from and structure.changed() and not structure.parameters_are_lent

    def followed(self, watched: int) -> None:
        """The hooks were renewed."""
        self._followed += 1
        self.pending = False
        self._from = watched + (2 ** (self._followed - AT_ONCE) if self.too_many else 0)

    def frozen(self, taps: ModelTaps) -> str:
        """What was frozen, or unfrozen, since this was asked last; '' for nothing."""
        if not taps.structure.freezing_changed() or self._frozen_reports >= MOST_FROZEN:
            return ""
        taps.structure.note_freezing()
        now = frozenset(name for name, p in taps.parameters.named if not p.requires_grad)
        before, self._frozen = self._frozen or frozenset(), now
        self._frozen_reports += 1
        return _sentence([("frozen now", now - before), ("trained again", before - now)])


def difference(before: ModelTaps, after: ModelTaps) -> str:
    """What is watched now that was not, and the other way round, in one sentence; '' if nothing differs."""
    old, new = dict(before.parameters.named), dict(after.parameters.named)
    replaced = {name for name in old.keys() & new.keys() if old[name] is not new[name]}
    known = {id(p) for p in old.values()}
    unfrozen = {name for name in new.keys() - old.keys() if id(new[name]) in before.structure.others}
    parts = [
        ("new", {name for name in new.keys() - old.keys() - unfrozen if id(new[name]) not in known}),
        ("trained from now on", unfrozen),
        ("replaced", replaced),
        ("gone, or frozen", old.keys() - new.keys()),
    ]
    text = _sentence(parts)
    device = after.buffer.device
    if device != before.buffer.device:
        text += f"{'; ' if text else 'the model has changed: '}it is on {device} now"
    return text


def _sentence(parts: Sequence[tuple[str, Collection[str]]]) -> str:
    said = [
        f"{len(names)} parameter{'s are' if len(names) > 1 else ' is'} {what} ({_some(names)})"
        for what, names in parts
        if names
    ]
    return f"the model has changed: {'; '.join(said)}" if said else ""


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:NAMED]) + (", ..." if len(names) > NAMED else "")
