"""Which attention layers a model has: found by the operators that run, without stabwatch's help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode

_NAMED = re.compile(r"attn|attention|msa$", re.IGNORECASE)
_PARTS = re.compile(r"norm|mlp|feedforward|output$|pool|block|layer$|bias|embed|dropout|head$|mask", re.IGNORECASE)
"""Parts of attention layers, or what is around them: `BertSelfOutput`, `AttentionBlock`."""
_OTHER_SOFTMAX = re.compile("HyperConnection|LQE")
"""Their softmax is over residual streams, or over the bins of a distance, not over tokens."""
_FUSED = "scaled_dot_product"
_SOFTMAX = ("_softmax.", "_safe_softmax.")
_WRAPPERS = re.compile(
    r"(^|\.)(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_model\.model)(?=\.|$)"
)


class AttentionLayers(TorchDispatchMode):
    """While active, notes the innermost module of each attention operator.

    An operator of attention is a fused one, or a softmax over one of the last two of four dimensions, or any of two or
    more dimensions below a module whose class is called attention.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._names: dict[int, str] = {}
        self._name_all()
        self._stack: list[nn.Module] = []
        self._called: list[nn.Module] = []
        self._layers: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if _FUSED in name and "backward" not in name:
            self._note()
        elif any(word in name for word in _SOFTMAX) and "backward" not in name:
            dim, near = args[0].dim(), self._stack[-3:]
            other = any(_OTHER_SOFTMAX.search(type(m).__name__) for m in near)
            over_keys = args[1] % max(dim, 1) >= dim - 2
            if (dim >= 4 and over_keys and not other) or (dim >= 2 and any(map(_is_named, near))):
                self._note()
        return func(*args, **(kwargs or {}))

    def _name_all(self) -> None:
        """Some models replace their modules in a forward: BigBird, where the input is short."""
        self._names |= {id(m): _WRAPPERS.sub("", name).lstrip(".") for name, m in self._model.named_modules()}

    def _note(self) -> None:
        if any(id(m) not in self._names for m in self._stack):
            self._name_all()
        known = [m for m in self._stack if id(m) in self._names]
        layer = next((m for m in reversed(known) if _is_named(m)), known[-1] if known else None)
        if layer is not None:
            self._layers[self._names[id(layer)]] = None

    @property
    def layers(self) -> list[str]:
        """Names of the layers that called attention."""
        return list(self._layers)

    @property
    def silent(self) -> list[str]:
        """Names of modules called attention that did not, and contain none that is called attention."""
        called = [self._names[id(m)] for m in self._called if _is_named(m) and id(m) in self._names]
        alone = [name for name in dict.fromkeys(called) if not any(_related(name, other) for other in self._layers)]
        return [name for name in alone if not any(other.startswith(name + ".") for other in alone)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the calls of modules and operators meanwhile."""
        before = hooks.register_module_forward_pre_hook(self._enter)
        after = hooks.register_module_forward_hook(self._leave, always_call=True)
        try:
            with self:
                yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._stack.append(module)
        self._called.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._stack and self._stack[-1] is module:
            self._stack.pop()


def _is_named(module: nn.Module) -> bool:
    name = type(module).__name__
    return bool(_NAMED.search(name)) and not _PARTS.search(name)


def _related(one: str, other: str) -> bool:
    return one == other or one.startswith(other + ".") or other.startswith(one + ".") or not one or not other


def matched(layers: list[str], sites: list[str]) -> list[str]:
    """The layers that the log has: under their own name, or that of a module inside or just around them."""
    free = set(sites)
    seen = []
    for test in (_same, _inside, _around):
        for layer in layers:
            site = (
                None
                if layer in seen
                else next((s for s in sorted(free, key=len, reverse=True) if test(layer, s)), None)
            )
            if site is not None:
                seen.append(layer)
                free.discard(site)
    return [layer for layer in layers if layer in seen]


def _same(layer: str, site: str) -> bool:
    return layer == site


def _inside(layer: str, site: str) -> bool:
    return site.startswith(layer + ".")


def _around(layer: str, site: str) -> bool:
    return layer.startswith(site + ".") or site == ""
