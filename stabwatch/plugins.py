"""A user's own signals: a function of one tensor, declared and measured like the built-in ones.

    @stabwatch.signal(
        "activation_negative_ratio", tap="activation", unit="ratio", help="Share of a module's output below zero.",
        aggregates={"count": "sum", "negative": "sum"}, value=("negative", "count"), formula="mean",
    )
    def negative(x):
        return x.numel(), (x < 0).sum()

Declare it before `attach`, or in a package that names its module in the entry-point group `stabwatch.signals`.
A plugin becomes a probe in `stabwatch.hooks.base.probe.PROBES`, the registry of the built-in probes.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

import stabwatch.hooks.probes  # noqa: F401  the names of the built-in probes are taken
from stabwatch.hooks.base.parameter_views import ParameterGradient, ParameterWeight
from stabwatch.hooks.base.probe import PROBES, Computation, Need, Probe
from stabwatch.hooks.base.view import View
from stabwatch.hooks.base.views import LogitsCall, ModuleOutput
from stabwatch.hooks.probes.weights import CLOSURE
from stabwatch.kernels.merge import Aggregates, empty_accumulator, merge_
from stabwatch.signals import CATALOGUE, Signal
from stabwatch.signals.declaration import Kind, Scope, Tier, Worst
from stabwatch.signals.reductions import REDUCTIONS, Field, Op, Reduction

GROUP = "stabwatch.signals"
_log = logging.getLogger("stabwatch")
Function = Callable[..., Sequence[Any]]


@dataclass(frozen=True)
class Tap:
    """Where plugins may be called: the view, and the tensors of it that the function gets."""

    view: type[View]
    tensors: Callable[[Any], tuple[Tensor, ...]]
    needs: tuple[Need, ...] = ()


TAPS = {
    "activation": Tap(ModuleOutput, lambda view: (view.x,)),
    "gradient": Tap(ParameterGradient, lambda view: (view.gradient,), (Need("gradient", CLOSURE),)),
    "weight": Tap(ParameterWeight, lambda view: (view.weight,)),
    "logits": Tap(LogitsCall, lambda view: (view.logits, view.target)),
}


@dataclass(frozen=True)
class PluginFunction:
    """A user's function, as the computation of a probe."""

    reduction: Reduction
    tap: Tap
    function: Function

    def __call__(self, view: View) -> Aggregates:
        """Call it with the tensors of a view."""
        return self.aggregates(*self.tap.tensors(view))

    def aggregates(self, *tensors: Tensor) -> Tensor:
        """The function's numbers as float32 (fields,) on the first tensor's device.

        Raises ValueError if they are not as many as was declared.
        """
        with torch.no_grad():
            found = self.function(*(t.detach() for t in tensors))
        if len(found) != len(self.reduction.fields):
            names = ", ".join(f.name for f in self.reduction.fields)
            raise ValueError(f"`{self.reduction.name}` returned {len(found)} numbers; its aggregates are: {names}.")
        device = tensors[0].device
        return torch.stack([_number(x, device) for x in found])


def _number(x: Any, device: torch.device) -> Tensor:
    """float32 () on the device, without waiting for it."""
    if isinstance(x, Tensor):
        return x.to(device, torch.float32, non_blocking=True).reshape(())
    return torch.full((), float(x), dtype=torch.float32, device=device)


_plugins: dict[str, Probe] = {}
_loaded: set[str] = set()
_read: list[tuple[str, int]] = []
"""The folders of the search path when packages were read last, and when each was changed."""


def signal(
    name: str,
    *,
    tap: str,
    help: str,
    aggregates: Mapping[str, Op],
    value: Sequence[str],
    formula: str,
    unit: str = "1",
    tier: Tier = "sampled",
    kind: Kind = "gauge",
    worst: Worst = "max",
    source: str = "",
) -> Callable[[Callable[..., Sequence[Any]]], Callable[..., Sequence[Any]]]:
    """Register the decorated function as a signal.

    Args:
        name: Prometheus name without `stabwatch_`; a ratio ends with `_ratio`, a counter with `_total`.
        tap: 'activation' (called with a watched module's output), 'gradient' or 'weight' (each parameter's, before
            the optimizer's step), 'logits' (the arguments of `cross_entropy`: logits and target).
        aggregates: the numbers that the function returns, in order, with their merge operators ('sum', 'max', 'min');
            the first one is `count`. The same operators merge micro-batches, parameters of a layer, ranks and windows.
        value: the aggregates that become the value.
        formula: how they become it, by its name in `stabwatch.signals.formulas`.
        tier: 'always', 'sampled' or 'deep': how expensive it is (the governor decides how often it is measured).
        help: one sentence, ends with a full stop.
        unit: base unit for people and panels, such as 'ratio' or 'seconds'; '1' for a plain number.
        kind: 'gauge', or 'counter' for a name that ends with `_total`.
        worst: 'max' or 'min', the end of a window that matters.
        source: paper or code that defines it.

    The function gets detached tensors, must not change them, and may return tensors: it need not wait for a device.
    Inside a compiled graph plugins are not measured. Raises ValueError if the declaration does not fit together.
    """
    if tap not in TAPS:
        raise ValueError(f"`{name}`: a plugin's tap is one of {', '.join(TAPS)}, and not {tap!r}.")
    if name not in _plugins and (name in REDUCTIONS or name in CATALOGUE):
        raise ValueError(f"A signal or reduction called `{name}` is registered already.")
    reduction = _reduction(name, aggregates)
    scope: Scope = "run" if tap == "logits" else "layer"

    def declare() -> Signal:
        return Signal(
            name=name, help=help, unit=unit, tap=tap, reduction=name, fields=tuple(value), formula=formula,
            scope=scope, kind=kind, tier=tier, worst=worst, source=source,
        )  # fmt: skip

    declared = _with(reduction, declare)

    def register(function: Function) -> Function:
        if name in _plugins:
            forget(name)
        place = TAPS[tap]
        _plugins[name] = PROBES.register(
            Probe(
                name=f"plugin {name}", tap=tap, reduction=reduction, tier=tier, needs=place.needs, optional=True,
                compute=Computation(place.view, PluginFunction(reduction, place, function)), graph_safe=False,
                signals=(declared,),
            )
        )  # fmt: skip
        return function

    return register


def _with(reduction: Reduction, declare: Callable[[], Signal]) -> Signal:
    """Declare a signal on a reduction that is not registered yet. Raises ValueError if they do not fit together."""
    before = REDUCTIONS.get(reduction.name)
    REDUCTIONS[reduction.name] = reduction
    try:
        return declare()
    except AssertionError as error:
        raise ValueError(str(error)) from None
    finally:
        REDUCTIONS.pop(reduction.name)
        if before is not None:
            REDUCTIONS[reduction.name] = before


def _reduction(name: str, aggregates: Mapping[str, Op]) -> Reduction:
    unknown = sorted(set(aggregates.values()) - {"sum", "max", "min"})
    if unknown:
        raise ValueError(f"`{name}`: merge operators are 'sum', 'max' and 'min', and not {', '.join(unknown)}.")
    try:
        return Reduction(name, tuple(Field(field, op) for field, op in aggregates.items()))
    except AssertionError as error:
        raise ValueError(f"`{name}`: {error}.") from None


def forget(name: str) -> None:
    """Remove a plugin from the registry."""
    PROBES.remove(_plugins.pop(name))


def load() -> None:
    """Import the modules that installed packages name in the entry-point group; one that fails is logged.

    Packages are read again, which takes 30 ms, where the search path or a folder on it has changed.
    """
    if (folders := [_changed(folder) for folder in sys.path]) == _read:
        return
    _read[:] = folders
    for entry in entry_points(group=GROUP):
        if entry.value in _loaded:
            continue
        _loaded.add(entry.value)
        try:
            entry.load()
        except Exception:
            _log.exception("stabwatch: the signals of %s (%s) cannot be loaded", entry.name, entry.value)


def _changed(folder: str) -> tuple[str, int]:
    try:
        return folder, os.stat(folder or ".").st_mtime_ns
    except OSError:
        return folder, 0


def check(name: str, *examples: tuple[Tensor, ...]) -> None:
    """Check a plugin against the contract of all signals. Raises AssertionError where it breaks it.

    examples: argument tuples of the function, at least two. Their aggregates, merged by the declared operators, must be
    those that the function returns for all examples concatenated.
    """
    compute = _plugins[name].compute
    assert compute is not None and isinstance(compute.function, PluginFunction)
    plugin = compute.function
    before = torch.get_rng_state()
    whole = empty_accumulator(plugin.reduction, examples[0][0].device)
    for tensors in examples:
        copies = [t.clone() for t in tensors]
        part = plugin.aggregates(*tensors)
        assert part[0] > 0, f"{name}: the count of a non-empty tensor is positive"
        assert all(a.equal(b) for a, b in zip(tensors, copies, strict=True)), f"{name}: it changed its input"
        merge_(plugin.reduction, whole, part)
    assert torch.get_rng_state().equal(before), f"{name}: it drew from torch's global generator"
    together = plugin.aggregates(*(torch.cat([e[i] for e in examples]) for i in range(len(examples[0]))))
    torch.testing.assert_close(
        whole, together, rtol=1e-4, atol=1e-6, msg=lambda m: f"{name}: its parts do not merge: {m}"
    )
