"""How the modules of a model contain each other, by the names that `naming` gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.distributed.flat import whole_shape
from stabwatch.hooks.base.naming import named_modules, unwrap


class ModuleTree:
    """The modules of a model, parents first, without the wrappers that return what their inner module returns.

    modules: by name; the model itself is ''. beside: names of those that belong to a wrapper of it.
    shared: names of the modules that are reachable in several ways.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = {item.name: item.module for item in named_modules(model)}
        names = {id(module): name for name, module in self.modules.items()}
        self._children = {
            name: tuple(names[id(unwrap(child))] for child in module._modules.values() if child is not None)
            for name, module in self.modules.items()
        }
        self._parents: dict[str, list[str]] = {name: [] for name in self.modules}
        for name, children in self._children.items():
            for child in children:
                self._parents[child].append(name)
        self.beside = frozenset(self.modules) - {"", *self.below("")}
        several = [name for name, parents in self._parents.items() if len(parents) > 1]
        self.shared = frozenset(found for name in several for found in (name, *self.below(name)))

    def children(self, name: str) -> Sequence[str]:
        """The modules directly inside of this one."""
        return self._children[name]

    def below(self, name: str) -> list[str]:
        """All modules inside of this one, in order."""
        found: dict[str, None] = {}
        waiting = list(reversed(self._children[name]))
        while waiting:
            child = waiting.pop()
            if child not in found and child != name:
                found[child] = None
                waiting.extend(reversed(self._children[child]))
        return list(found)

    def above(self, name: str) -> Iterator[str]:
        """The modules around this one, from the inside to the outside, without the model itself."""
        seen = {name}
        while name and (parent := self._parent(name)) not in seen:
            if parent:
                yield parent
            name = parent
            seen.add(name)

    def _parent(self, name: str) -> str:
        """The module that contains this one: of several, the one that gave it its name."""
        parents = self._parents[name]
        return next((p for p in parents if p and name.startswith(p + ".")), parents[0] if parents else "")


def held(module: nn.Module, name: str = "weight") -> Tensor | None:
    """A tensor of a module as it is kept, for its shape: nothing of the module is called to find it.

    Of a parametrized tensor it is what the parametrization computes it from, which has the same shape for those of
    torch.
    """
    places: tuple[Mapping[str, Any], ...] = (module._parameters, module._buffers, vars(module))
    found = next((place[name] for place in places if name in place and place[name] is not None), None)
    if found is None and torch.nn.utils.parametrize.is_parametrized(module, name):
        kept = module.get_submodule(f"parametrizations.{name}")._parameters
        found = kept.get("original", kept.get("original1"))
    if not isinstance(found, Tensor) or nn.parameter.is_lazy(found):
        return None
    shape = whole_shape(found)
    return found if shape == found.shape else torch.empty(shape, dtype=found.dtype, device="meta")
