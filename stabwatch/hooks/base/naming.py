"""Names of modules and parameters as their author wrote them, whatever wraps the model.

Names are unique, and the same before and after wrapping: attaching before or after `torch.compile`, DDP, FSDP,
activation checkpointing or PEFT gives the same series.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

_REPLACED = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "_fsdp_wrapped_module",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": "_checkpoint_wrapped_module",
    "fairscale.nn.checkpoint.checkpoint_activations.CheckpointWrapper": "module",
    "deepspeed.runtime.engine.DeepSpeedEngine": "module",
    "lightning.fabric.wrappers._FabricModule": "_original_module",
    "lightning_fabric.wrappers._FabricModule": "_original_module",
    "peft.peft_model.PeftModel": "base_model",
    "peft.tuners.tuners_utils.BaseTuner": "model",
}
"""Wrappers that return what their inner module returns: the inner module takes their place. Full name of the class (or
of a base class) to the attribute of the inner module; by name, so that none of these libraries is imported."""
_COLLAPSED = {"peft.tuners.tuners_utils.BaseTunerLayer": "base_layer"}
"""Wrappers that compute something of their own: they stay, and their inner module's attribute leaves the names."""
OWN = "module"
"""The same for a user's own wrapper: the attribute of its only child, where it has no parameters of its own."""


@dataclass(frozen=True)
class Named:
    """A module, its unique name, the names of all wrappers around it, and the prefix of its parameters' names."""

    name: str
    module: nn.Module
    prefix: str
    wrappers: tuple[nn.Module, ...] = ()


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside wrappers that return what it returns."""
    return _unwrapped(model)[0]


def named_modules(model: nn.Module) -> list[Named]:
    """Every module once, parents first; the model itself is the first and its name is ''.

    Wrappers that return what their inner module returns are left out, and what they have beside it comes after it. A
    module that is reachable in several ways has
    the name of the first.
    """
    return list(_walk(model, "", "", set(), set()))


def named_parameters(model: nn.Module) -> list[tuple[str, str, nn.Parameter]]:
    """(name, name of the owning module, parameter) of every parameter, once; a flat parameter too."""
    found: list[tuple[str, str, nn.Parameter]] = []
    seen: set[int] = set()
    taken: set[str] = set()
    for item in named_modules(model):
        for holder in (*item.wrappers, item.module):
            for name, parameter in holder._parameters.items():
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    found.append((_unique(_joined(item.prefix, name), taken), item.name, parameter))
    return found


def _walk(module: nn.Module, name: str, prefix: str, seen: set[int], taken: set[str]) -> Iterator[Named]:
    inner, wrappers = _unwrapped(module)
    if id(inner) in seen:
        return
    seen.add(id(inner))
    yield Named(_unique(name, taken), inner, prefix, wrappers)
    collapsed = _collapsed(inner)
    for child_name, child in inner._modules.items():
        if child is not None:
            below = _joined(prefix, child_name)
            yield from _walk(child, below, prefix if child_name == collapsed else below, seen, taken)
    for wrapper in wrappers:  # what it has beside the model, such as the prompts of PEFT
        for child_name, child in wrapper._modules.items():
            if child is not None:
                below = _joined(prefix, child_name)
                yield from _walk(child, below, below, seen, taken)


def _unwrapped(module: nn.Module) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    wrappers: list[nn.Module] = []
    while (attribute := _attribute(module, _REPLACED)) is not None:
        wrappers.append(module)
        inner: Any = module._modules[attribute]
        module = inner
    return module, tuple(wrappers)


def _collapsed(module: nn.Module) -> str | None:
    """Attribute of the child whose own name is left out of the names below it."""
    only = list(module._modules.keys()) == [OWN] and not module._parameters
    return OWN if only else _attribute(module, _COLLAPSED)


def _attribute(module: nn.Module, classes: dict[str, str]) -> str | None:
    for base in type(module).__mro__:
        attribute = classes.get(f"{base.__module__}.{base.__qualname__}")
        if attribute is not None and isinstance(module._modules.get(attribute), nn.Module):
            return attribute
    return None


def _unique(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where another module or parameter has it already."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}~{number}"
    taken.add(found)
    return found


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
