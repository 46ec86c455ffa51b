"""What a model consists of at one moment, to notice cheaply that it consists of something else later."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stabwatch.hooks.base.tensors import local

_trained = attrgetter("requires_grad")
_MANAGED = ("FullyShardedDataParallel", "FSDPModule")


class Structure:
    """The modules and parameters of a model, with its wrappers.

    tracked: ids of the parameters that are watched. Others are looked at for `requires_grad`.
    A comparison takes some 0.05 ms for a thousand modules: it compares identities, and calls nothing of the model.
    """

    def __init__(self, whole: nn.Module, tracked: Iterable[int]) -> None:
        modules = [m for m in whole.modules() if isinstance(m._parameters, dict) and isinstance(m._modules, dict)]
        self._holders: list[dict[str, Any]] = [m._parameters for m in modules]
        self._all: list[dict[str, Any]] = [*self._holders, *(m._modules for m in modules)]
        self._note()
        self._parameters = _flat(self._holders)
        known = set(tracked)
        self._owned = [
            (m, name, p) for m in modules for name, p in m._parameters.items() if p is not None and id(p) in known
        ]
        real = [p for p in self._parameters if p is not None]
        self._others = [p for p in real if id(p) not in known and not _trained(p)]
        self._tracked = [p for p in real if id(p) in known]
        self._trained = sum(map(_trained, self._tracked))
        self.others = frozenset(id(p) for p in real if id(p) not in known)
        """Ids of the parameters that are not tracked."""
        self._lazy = [p for p in real if is_lazy(p)]
        self._first = real[0] if real else None
        self._device = None if self._first is None else self._first.device

    def _note(self) -> None:
        """The model is to be compared with what it is now."""
        self._sizes = [*map(len, self._all)]
        self._views = [place.values() for place in self._all if place]
        self._parts = [*chain.from_iterable(self._views)]
        """Modules and parameters."""

    def lacks(self, whole: nn.Module) -> bool:
        """Has this model parameters that were not here?"""
        here = {id(p) for p in self._parameters}
        return any(id(p) not in here for p in whole.parameters())

    @property
    def parameters_are_lent(self) -> bool:
        """Does something hold tensors that are no parameters in their places, as `torch.func.functional_call` does?"""
        return any(p is not None and not isinstance(p, nn.Parameter) for p in _flat(self._holders))

    def changed(self) -> bool:
        """Were modules or parameters added, taken out, replaced, unfrozen, materialised or moved?"""
        other = [*map(len, self._all)] != self._sizes or not all(
            map(is_, chain.from_iterable(self._views), self._parts)
        )
        return (
            (other and not self._are_lent_for_good())
            or any(map(_trained, self._others))
            or any(not is_lazy(p) for p in self._lazy)
            or (self._first is not None and self._first.device != self._device)
        )

    def _are_lent_for_good(self) -> bool:
        """Is all that differs that tensors of the same memory have taken the places of parameters which are trained?

        DistributedDataParallel of tensor-parallel modules makes DTensors of its parameters at the first forward, and
        the model has these from then on. The optimizer steps the parameters.
        """
        lent = {id(p) for module, name, p in self._owned if _has_its_memory(vars(module).get(name), p)}
        if not lent:
            return False
        before = [each for each in self._parts if id(each) not in lent]
        now = _flat([place for place in self._all if place])
        if len(now) != len(before) or not all(map(is_, now, before)):
            return False
        self._note()
        return True

    def freezing_changed(self) -> bool:
        """Are other ones of the tracked parameters frozen than before?"""
        return sum(map(_trained, self._tracked)) != self._trained

    def note_freezing(self) -> None:
        """Compare with what is frozen now from now on."""
        self._trained = sum(map(_trained, self._tracked))


def _has_its_memory(tensor: Any, p: nn.Parameter) -> bool:
    return isinstance(tensor, Tensor) and not is_lazy(p) and local(tensor).data_ptr() == local(p).data_ptr() != 0


def is_managed(whole: nn.Module) -> bool:
    """Does a library exchange the parameters of this model while it runs (FSDP)? They are themselves between steps."""
    return any(base.__name__ in _MANAGED for m in whole.modules() for base in type(m).__mro__)


def _flat(places: list[dict[str, Any]]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, places)))
