"""What a probe is: one measured thing, declared once. Everything that has to know about probes reads `PROBES`.

A probe says where it is called (its view), what it computes (aggregates of its reduction), how expensive it is, and
what may be missing without a fault. Which accumulators a run has, which sites are measured in turn, what the coverage
report excuses and which cost belongs to which signal are derived from the registered probes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stabwatch.hooks.base.view import View
from stabwatch.kernels.merge import Aggregates
from stabwatch.runlog import Accumulator
from stabwatch.signals import CATALOGUE, Signal
from stabwatch.signals.declaration import Tier
from stabwatch.signals.reductions import REDUCTIONS, Field, Op, Reduction

V = TypeVar("V", bound=View)


@dataclass(frozen=True)
class Computation:
    """A function and the view of a tapped call that it takes. It returns aggregates, or None for nothing measured.

    together: gives the same for several views at once.
    """

    view: type[View]
    function: Callable[[Any], Aggregates | None]
    together: Callable[[Sequence[Any]], Sequence[Aggregates | None]] | None = None


def on(
    view: type[V],
    function: Callable[[V], Aggregates | None],
    together: Callable[[Sequence[V]], Sequence[Aggregates | None]] | None = None,
) -> Computation:
    """`function`, called with each `view`, or `together` with several of them."""
    return Computation(view, function, together)


@dataclass(frozen=True)
class Need:
    """An attribute of the view that must not be None, and the reason that is reported where it is."""

    attribute: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One measured thing.

    name: key of its cost and of its errors; probes that are measured by the same code share it.
    tap, reduction: which accumulators it fills, and where the signals read them.
    tier: how expensive it is; the governor decides how often each tier is measured.
    compute: what is computed from which view. None: the module that declares the probe collects by its own code.
    needs: what the view must provide.
    places: names of the accumulators at a site or layer, where there are several; aggregates are then (n, fields).
    round_robin: its sites are measured in turn, a share of them at each deep step.
    per_call: it exists only at sites where a call was seen.
    optional: a model that cannot show it is no fault of the set-up.
    reported_as: its name in the coverage report; by default that of its reduction.
    graph_safe: it can be measured inside a compiled graph.
    signals: those that it brings along. The built-in signals are declared in `stabwatch.signals`.
    """

    name: str
    tap: str
    reduction: Reduction
    tier: Tier
    compute: Computation | None = None
    needs: tuple[Need, ...] = ()
    places: Callable[[Any], Sequence[str]] | None = None
    round_robin: bool = False
    per_call: bool = False
    optional: bool = False
    reported_as: str = ""
    graph_safe: bool = True
    signals: tuple[Signal, ...] = ()

    def __post_init__(self) -> None:
        if self.compute is not None and self.compute.view.only_in_turn and not self.round_robin:
            raise ValueError(f"`{self.name}`: a probe of {self.compute.view.__name__} must be `round_robin`.")
        for signal in self.signals:
            if (signal.tap, signal.reduction) != (self.tap, self.reduction.name):
                raise ValueError(f"`{self.name}`: its signal `{signal.name}` reads another tap or reduction.")

    @property
    def key(self) -> tuple[str, str]:
        """Tap and name of the reduction: no two probes have the same."""
        return self.tap, self.reduction.name

    @property
    def measured_in_graph(self) -> bool:
        """Is it measured inside compiled graphs too?"""
        return self.graph_safe and (self.compute is None or self.compute.view.in_graph)

    @property
    def report_key(self) -> str:
        """Its name in the coverage report."""
        return self.reported_as or self.reduction.name

    def accumulator(self, place: str = "") -> Accumulator:
        """The accumulator of one site or layer; '' for the whole run."""
        return Accumulator(self.tap, place, self.reduction.name)

    def accumulators(self, target: Any, place: str) -> tuple[Accumulator, ...]:
        """All accumulators at a target (a site, say) whose name is `place`."""
        names = (place,) if self.places is None else self.places(target)
        return tuple(self.accumulator(name) for name in names)


class ProbeRegistry:
    """Probes in the order of registration."""

    def __init__(self) -> None:
        self._probes: dict[tuple[str, str], Probe] = {}

    def register(self, probe: Probe) -> Probe:
        """Add a probe, its reduction and its signals.

        Raises ValueError if another probe, reduction or signal has the same name.
        """
        if probe.key in self._probes:
            raise ValueError(f"`{probe.reduction.name}` is measured at the tap `{probe.tap}` already.")
        if REDUCTIONS.setdefault(probe.reduction.name, probe.reduction) != probe.reduction:
            raise ValueError(f"A signal or reduction called `{probe.reduction.name}` is registered already.")
        for signal in probe.signals:
            CATALOGUE.register(signal)
        self._probes[probe.key] = probe
        return probe

    def remove(self, probe: Probe) -> None:
        """Take a probe out, with the signals and the reduction that it brought along."""
        del self._probes[probe.key]
        for signal in probe.signals:
            CATALOGUE.remove(signal.name)
        if probe.signals:
            REDUCTIONS.pop(probe.reduction.name, None)

    def find(self, tap: str, reduction: str) -> Probe | None:
        """The probe that fills these accumulators; None for numbers that no probe measures."""
        return self._probes.get((tap, reduction))

    def tier(self, accumulator: Accumulator) -> Tier:
        """The tier that fills an accumulator; what no probe measures the step loop fills itself, at every step."""
        probe = self.find(accumulator.tap, accumulator.reduction)
        return "always" if probe is None else probe.tier

    def __iter__(self) -> Iterator[Probe]:
        return iter(self._probes.values())

    def __len__(self) -> int:
        return len(self._probes)


PROBES = ProbeRegistry()


def new_reduction(name: str, **operators: Op) -> Reduction:
    """A reduction for a probe that brings one along: its fields in order, `count` first, with their merge operators.

    It is known from now on, so that signals can be declared on it. Raises ValueError if the name is taken by another
    one.
    """
    reduction = Reduction(name, tuple(Field(field, op) for field, op in operators.items()))
    if REDUCTIONS.setdefault(name, reduction) != reduction:
        raise ValueError(f"A signal or reduction called `{name}` is registered already.")
    return reduction
