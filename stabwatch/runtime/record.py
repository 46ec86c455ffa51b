"""From a step's row (of this rank, or merged over ranks) to a record of the run log. Runs in the writer's thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabwatch.distributed.health import RankHealth
from stabwatch.distributed.layout import CHECKS
from stabwatch.hooks.base.probe import PROBES, Probe
from stabwatch.hooks.base.run_accumulators import CLIPPED, LOSS, LOSS_FALLBACKS, TOKEN_LOSS, loss_source
from stabwatch.runlog import Accumulator, RecordLayout
from stabwatch.runtime.host_numbers import HOST_ACCUMULATORS
from stabwatch.signals.declaration import TIERS
from stabwatch.signals.reductions import MergeOperators

COMPARED = 8
"""Records in which the trained loss and the cross-entropy are compared."""
OF_ALL_LAYERS = frozenset({"gradient_norm"})
"""Signals that are a sum over all layers, and not known where one of them is not."""
DIFFERS = 0.05
"""Relative difference from which on they are not the same loss."""


@dataclass(frozen=True)
class _Selection:
    """Which fields a record gets from a row of the device that has the fields `places` of all; None: the whole row.

    sources: first fields in the row of the sources of the loss that it has, best first; trained, token_loss: those of
    these two. device: the other fields of the row. operators: of all fields that are put together from these and the
    host's. starts: of the accumulators among them; accumulators: their numbers. brackets: upper and lower ends.
    taken, columns: what becomes which columns of the record.
    """

    places: NDArray[np.int64] | None
    sources: tuple[int, ...]
    trained: int | None
    token_loss: int | None
    device: NDArray[np.int64]
    operators: MergeOperators
    starts: NDArray[np.int64]
    accumulators: NDArray[np.int64]
    brackets: NDArray[np.int64]
    taken: NDArray[np.int64]
    columns: NDArray[np.int64]


class Assembler:
    """Chooses the source of the loss, and selects the accumulators that exist in this run.

    The device has an accumulator for every place where something might be measured. The log contains those that are
    expected, and any other from the first record in which it was measured (a new segment begins then). Where sites are
    measured in turn, the first one adds all sites of its tap, so that one segment is enough; what is measured per call
    is added at all sites where an exact value of such a call was seen.
    without: gives the signals that this run cannot have although their accumulators are there.
    before: the one whose place it takes, when the model has changed.
    """

    def __init__(
        self,
        accumulators: Iterable[Accumulator],
        expected: Iterable[Accumulator],
        probes: Iterable[Probe],
        health: RankHealth,
        undecided: Callable[[], None] = lambda: None,
        attention_limit: float = math.inf,
        without: Callable[[], frozenset[str]] = frozenset,
        before: Assembler | None = None,
    ) -> None:
        self._device = RecordLayout.without_series(accumulators)
        self._undecided = undecided
        self._get_without, self._without = without, frozenset[str]()
        self._limit = attention_limit
        probes = tuple(probes)
        self._round_robin = {probe.key for probe in probes if probe.round_robin and not probe.per_call}
        self._per_call = {probe.key for probe in probes if probe.per_call}
        sources = [self._device.start(loss_source(name)) for name in LOSS_FALLBACKS]
        self._after_sources = sources[-1] + 3
        self._trained = sources[LOSS_FALLBACKS.index("backward")]
        self._token_loss = self._device.start(TOKEN_LOSS)
        self._sources = (*sources, self._token_loss)
        self._compared: list[tuple[float, float]] = []
        self._health = health
        kept = (a for a in self._device.accumulators if a.tap not in ("loss_source", "rank_source"))
        self._fixed = (LOSS, *kept, *HOST_ACCUMULATORS, *health.accumulators)
        self._logged: list[str] = []
        self.fired: set[Accumulator] = set()
        self._shown = set(expected) | set(HOST_ACCUMULATORS) | {LOSS}
        if before is not None:
            self.fired, self._compared, self._logged = before.fired, before._compared, before._logged
            self._shown |= self.fired
        self._laid_out = False

    def _lay_out(self) -> None:
        """In the writer's thread, before the first record: many accumulators take a while."""
        self._laid_out = True
        logged = (Accumulator("logged", name, "mean") for name in self._logged)
        self._all = RecordLayout.without_series((*self._fixed, *logged))
        self._fired = np.zeros(len(self._all.accumulators), dtype=bool)
        self._select()

    def _select(self) -> None:
        shown = [i for i, accumulator in enumerate(self._all.accumulators) if accumulator in self._shown]
        keep = sorted(shown, key=lambda i: _turn(self._all.accumulators[i]))
        self._selected = tuple(self._all.accumulators[i] for i in keep)
        self._layout: RecordLayout | None = None
        spans = [np.arange(len(self._all.fields[i])) + self._all.starts[i] for i in keep]
        self._positions = np.concatenate(spans)
        self._selections: list[_Selection] = []

    @property
    def layout(self) -> RecordLayout:
        """The layout of a record."""
        if self._layout is None:
            self._layout = RecordLayout.build(self._selected, without=self._without)
        return self._layout

    def _selection(self, places: NDArray[np.int64] | None) -> _Selection:
        """There are few different places: those of each extent of a step."""
        found = next((s for s in self._selections if s.places is places), None)
        if found is None:
            found = self._make_selection(places)
            self._selections.append(found)
        return found

    def _make_selection(self, places: NDArray[np.int64] | None) -> _Selection:
        every = np.arange(self._device.width) if places is None else places
        here = {int(place): i for i, place in enumerate(every)}
        device = np.flatnonzero(every >= self._after_sources)
        first = 3 + self._device.width - self._after_sources  # of the host, in all fields
        compared = first + 2 * len(HOST_ACCUMULATORS)
        rest = np.arange(first, self._all.width)
        if places is not None:
            rest = rest[(rest < compared) | (rest >= compared + len(self._health.absent))]
        fields = np.concatenate([np.arange(3), every[device] - self._after_sources + 3, rest])
        inverse = np.full(self._all.width, -1)
        inverse[fields] = np.arange(len(fields))
        of = np.repeat(np.arange(len(self._all.fields)), [len(f) for f in self._all.fields])[fields]
        starts = inverse[np.array(self._all.starts, dtype=np.int64)]
        brackets = inverse[_brackets(self._all)]
        columns = np.flatnonzero(inverse[self._positions] >= 0)
        ops = self._all.operators.ops
        return _Selection(
            places,
            tuple(here[start] for start in self._sources if start in here),
            here.get(self._trained),
            here.get(self._token_loss),
            device,
            MergeOperators([ops[i] for i in fields], of.tolist()),
            starts[starts >= 0],
            np.flatnonzero(starts >= 0),
            brackets[:, (brackets >= 0).all(axis=0)],
            inverse[self._positions[columns]],
            columns,
        )

    def _note(self, here: NDArray[np.bool_], accumulators: NDArray[np.int64]) -> None:
        """Which of some accumulators this record has. Most records have none that an earlier one had not."""
        without = self._get_without()
        if without == self._without and not (here & ~self._fired[accumulators]).any():
            return
        measured = accumulators[here].tolist()
        self._fired[measured] = True
        fired = {self._all.accumulators[i] for i in measured}
        self.fired |= fired
        if not fired <= self._shown or without != self._without:
            self._without = without
            self._show(fired)

    def _show(self, fired: set[Accumulator]) -> None:
        """Add what was measured for the first time, and what is going to be measured like it."""
        self._shown |= fired
        taps = {a.tap for a in fired if (a.tap, a.reduction) in self._round_robin}
        called = {(a.tap, a.site) for a in self.fired if (a.tap, a.reduction) in self._per_call}
        for a in self._all.accumulators:
            key = (a.tap, a.reduction)
            if (key in self._round_robin and a.tap in taps) or (key in self._per_call and (a.tap, a.site) in called):
                self._shown.add(a)
        self._select()

    def assemble(
        self,
        row: NDArray[np.floating],
        health: NDArray[np.float64] | None,
        host: NDArray[np.float64],
        logged: Mapping[str, NDArray[np.floating]],
        places: NDArray[np.int64] | None = None,
    ) -> tuple[RecordLayout, NDArray[np.float32]]:
        """The layout and the fields of the record, NaN where not measured.

        row: (fields on the device,), or those at `places` where the others were not measured. health: fields of the
        accumulators that compare ranks; None for one rank alone.
        """
        new = [name for name in logged if name not in self._logged]
        if new:
            self._logged += new
        if new or not self._laid_out:
            self._lay_out()
        found = self._selection(places)
        merged = np.asarray(row, dtype=np.float64)  # what was not measured has a count of zero, or NaN
        self._compare(merged, found)
        compared = (self._health.absent if health is None else health) if places is None else ()
        given = [logged.get(name, np.full(3, np.nan)) for name in self._logged]
        fields = np.concatenate([_loss(merged, found.sources), merged[found.device], host, compared, *given])
        fields = found.operators.with_nan(fields)
        self._note(~np.isnan(fields[found.starts]), found.accumulators)
        self._check_brackets(fields, found)
        found = self._selection(places)
        values = np.full(len(self._positions), np.nan, np.float32)
        values[found.columns] = fields[found.taken]
        return self.layout, values

    def recorded(self, measured: set[Accumulator]) -> set[Accumulator]:
        """What a record would have of accumulators that were measured on the device."""
        losses = {TOKEN_LOSS, *(loss_source(name) for name in LOSS_FALLBACKS)}
        found = {a for a in measured & set(self._fixed) if a.tap not in CHECKS} | set(HOST_ACCUMULATORS)
        return found | {LOSS} if measured & losses else found

    def _compare(self, merged: NDArray[np.float64], found: _Selection) -> None:
        """Keep the trained loss and the cross-entropy of the first records."""
        if len(self._compared) < COMPARED and found.trained is not None and found.token_loss is not None:
            starts = (found.trained, found.token_loss)
            pair = [merged[start + 1] / merged[start] for start in starts if merged[start] > 0]
            if len(pair) == 2:
                self._compared.append((pair[0], pair[1]))

    @property
    def trains_another_loss(self) -> bool:
        """Did the trained loss and the cross-entropy differ by more than `DIFFERS` in most of the first records?"""
        far = [abs(trained - tokens) > DIFFERS * abs(tokens) for trained, tokens in self._compared]
        return sum(far) > len(far) / 2

    def _check_brackets(self, fields: NDArray[np.float64], found: _Selection) -> None:
        """Ask for the exact value when the limit is inside a bracket."""
        upper, lower = found.brackets
        if not len(upper):
            return
        with np.errstate(invalid="ignore"):
            if np.any((fields[lower] < self._limit) & (fields[upper] >= self._limit)):
                self._undecided()


def _loss(merged: NDArray[np.float64], sources: tuple[int, ...]) -> NDArray[np.float64]:
    """The fields of the best source of the loss that was measured."""
    for start in sources:
        if merged[start] > 0:
            return merged[start : start + 3]
    return np.full(3, np.nan)


def _turn(accumulator: Accumulator) -> int:
    """Its place in a record, which ends after its last number: what every step fills, and then the tiers."""
    if accumulator in (LOSS, CLIPPED) or PROBES.find(accumulator.tap, accumulator.reduction) is None:
        return 0
    return 1 + TIERS.index(PROBES.tier(accumulator))


def _brackets(layout: RecordLayout) -> NDArray[np.int64]:
    """Positions of the upper and of the lower ends of all attention brackets: (2, brackets)."""
    pairs = []
    for accumulator, start, fields in zip(layout.accumulators, layout.starts, layout.fields, strict=True):
        if accumulator.reduction == "attention_bracket":
            names = [name for name, _ in fields]
            pairs.append((start + names.index("upper"), start + names.index("lower")))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T
