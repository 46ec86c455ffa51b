"""A user's own signals: a function of one tensor, declared like ours and measured with them.

    @stabwatch.signal(
        "activation_negative_ratio", tap="activation", unit="ratio", help="Share of a module's output below zero.",
        partials={"count": "sum", "negative": "sum"}, value=("negative", "count"), formula="mean",
    )
    def negative(x):
        return x.numel(), (x < 0).sum()

Declare it before `attach`, or in a package that names its module in the entry-point group `stabwatch.signals`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from stabwatch.kernels.merge import empty_accumulator, merge_
from stabwatch.signals import CATALOGUE, Signal
from stabwatch.signals.declaration import Kind, Level, Tier, Worst
from stabwatch.signals.reductions import REDUCTIONS, Field, Op, Reduction

GROUP = "stabwatch.signals"
TAPS = ("activation", "gradient", "weight", "logits")
_log = logging.getLogger("stabwatch")


@dataclass(frozen=True)
class Plugin:
    """A registered function and where it is called."""

    signal: Signal
    function: Callable[..., Sequence[Any]]

    @property
    def reduction(self) -> Reduction:
        """The partials that the function returns."""
        return REDUCTIONS[self.signal.reduction]

    def partials(self, *tensors: Tensor) -> Tensor:
        """The function's numbers as float32 (fields,) on the first tensor's device."""
        with torch.no_grad():
            found = self.function(*(t.detach() for t in tensors))
        if len(found) != len(self.reduction.fields):
            names = ", ".join(f.name for f in self.reduction.fields)
            raise ValueError(f"`{self.signal.name}` returned {len(found)} numbers; its partials are: {names}.")
        device = tensors[0].device
        return torch.stack([_number(x, device) for x in found])


def _number(x: Any, device: torch.device) -> Tensor:
    """float32 () on the device, without waiting for it."""
    if isinstance(x, Tensor):
        return x.to(device, torch.float32, non_blocking=True).reshape(())
    return torch.full((), float(x), dtype=torch.float32, device=device)


PLUGINS: dict[str, Plugin] = {}
_loaded: set[str] = set()


def signal(
    name: str,
    *,
    tap: str,
    help: str,
    partials: Mapping[str, Op],
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
        partials: the numbers that the function returns, in order, with their merge operators ('sum', 'max', 'min');
            the first one is `count`. The same operators merge micro-batches, parameters of a layer, ranks and windows.
        value: the partials that become the value.
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
    if name not in PLUGINS and (name in REDUCTIONS or name in CATALOGUE):
        raise ValueError(f"A signal or reduction called `{name}` is registered already.")
    reduction = _reduction(name, partials)
    level: Level = "run" if tap == "logits" else "layer"
    before = REDUCTIONS.get(name)
    REDUCTIONS[name] = reduction
    try:
        declared = Signal(
            name=name, help=help, unit=unit, tap=tap, reduction=name, fields=tuple(value), formula=formula,
            level=level, kind=kind, tier=tier, worst=worst, source=source,
        )  # fmt: skip
    except AssertionError as error:
        raise ValueError(str(error)) from None
    finally:
        REDUCTIONS.pop(name)
        if before is not None:
            REDUCTIONS[name] = before

    def register(function: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
        if name in PLUGINS:
            forget(name)
        CATALOGUE.register(declared)
        REDUCTIONS[name] = reduction
        PLUGINS[name] = Plugin(declared, function)
        return function

    return register


def _reduction(name: str, partials: Mapping[str, Op]) -> Reduction:
    unknown = sorted(set(partials.values()) - {"sum", "max", "min"})
    if unknown:
        raise ValueError(f"`{name}`: merge operators are 'sum', 'max' and 'min', and not {', '.join(unknown)}.")
    try:
        return Reduction(name, tuple(Field(field, op) for field, op in partials.items()))
    except AssertionError as error:
        raise ValueError(f"`{name}`: {error}.") from None


def forget(name: str) -> None:
    """Take a plugin back."""
    del PLUGINS[name]
    CATALOGUE.remove(name)
    REDUCTIONS.pop(name, None)


def load() -> None:
    """Import what installed packages offer in the entry-point group; one that fails is logged and left out."""
    for entry in entry_points(group=GROUP):
        if entry.value in _loaded:
            continue
        _loaded.add(entry.value)
        try:
            entry.load()
        except Exception:
            _log.exception("stabwatch: the signals of %s (%s) cannot be loaded", entry.name, entry.value)


def check(name: str, *examples: tuple[Tensor, ...]) -> None:
    """The contract that every signal keeps, for a plugin: raises AssertionError where it does not.

    examples: argument tuples of the function, at least two; merged by the declared operators they must give what
    the function finds in all of them at once, as far as they can be concatenated.
    """
    plugin = PLUGINS[name]
    before = torch.get_rng_state()
    whole = empty_accumulator(plugin.reduction, examples[0][0].device)
    for tensors in examples:
        copies = [t.clone() for t in tensors]
        part = plugin.partials(*tensors)
        assert part[0] > 0, f"{name}: the count of a non-empty tensor is positive"
        assert all(a.equal(b) for a, b in zip(tensors, copies, strict=True)), f"{name}: it changed its input"
        merge_(plugin.reduction, whole, part)
    assert torch.get_rng_state().equal(before), f"{name}: it drew from torch's global generator"
    together = plugin.partials(*(torch.cat([e[i] for e in examples]) for i in range(len(examples[0]))))
    torch.testing.assert_close(
        whole, together, rtol=1e-4, atol=1e-6, msg=lambda m: f"{name}: its parts do not merge: {m}"
    )
