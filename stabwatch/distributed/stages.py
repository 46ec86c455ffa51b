"""The stages of a pipeline as one run: what they measure side by side, with the names that layers have in the whole.

Ranks of different stages have different layouts. Each rank publishes the list of its accumulators in the directory,
and every rank makes the same union of all lists. A rank fills what its stages have; the rest is not measured there, and
merges as on any rank that has not measured it. What several ranks have under one name, and is a sum over parameters
(the norm of a parameter group, that of clipping), is a part of each rank, and counted once per rank.

A rank may have several stages (interleaved schedules), which need not follow on each other: its layers belong to the
stage whose module they are in.

The numbers of a list of layers (`blocks.0`) often begin at 0 in each stage. Then they go on from stage to stage. Any
other name that two stages have gets the number of the stage in front.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabwatch.distributed.health import REPLICATED, RankHealth
from stabwatch.distributed.layout import Kind, MergeLayout, Partial
from stabwatch.distributed.summands import Summands
from stabwatch.runlog import Accumulator, RecordLayout

NO_LAYER = frozenset({"loss_source", "rank_source", "group", "host", "logged"})
"""Taps whose sites are no layers."""
DESCENT = ("step", "descent")
MEET_SECONDS = 60.0
"""Time for all stages to publish what they measure."""


Parts = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Stage:
    """index: position among the ranks of this pipeline. ranks: those of this pipeline, the first stage first.

    parts: the stages of this rank, as number in the pipeline and name of the module in the model of this rank.
    """

    index: int
    ranks: tuple[int, ...]
    parts: Parts = ()

    @property
    def counts(self) -> bool:
        """Of several pipelines side by side, the one with rank 0 counts what replicas have alike."""
        return 0 in self.ranks


Entry = tuple[Accumulator, Kind]


@dataclass(frozen=True)
class Measured:
    """What one rank of a pipeline measures, and which of its stages have it."""

    parts: Parts
    entries: list[Entry]

    def describe(self) -> str:
        """All of it, as JSON."""
        return json.dumps(
            [self.parts, [[a.tap, a.site, a.reduction, kind] for a, kind in self.entries]], separators=(",", ":")
        )

    @classmethod
    def of(cls, text: str) -> Measured:
        """Inverse of `describe`."""
        parts, entries = json.loads(text)
        found = [(Accumulator(tap, site, reduction), kind) for tap, site, reduction, kind in entries]
        return cls(tuple((number, name) for number, name in parts), found)

    def place(self, layer: str) -> tuple[int, str]:
        """The stage that a layer belongs to, and its name in that stage; '' is the stage's whole module."""
        for number, name in self.parts:
            if layer == name or layer.startswith(f"{name}.") or not name:
                return number, layer[len(name) :].removeprefix(".") if name else layer
        return self.parts[0][0], layer

    @property
    def layers(self) -> list[str]:
        """Names of its layers, in order."""
        return list(dict.fromkeys(a.site for a, _ in self.entries if a.site and a.tap not in NO_LAYER))


def names_in_whole(ranks: Sequence[Measured]) -> list[dict[str, str]]:
    """For each rank, names of its layers in the whole model by its own."""
    places = [{layer: rank.place(layer) for layer in rank.layers} for rank in ranks]
    numbers = sorted({number for rank in ranks for number, _ in rank.parts})
    inside = [[name for place in places for n, name in place.values() if n == number and name] for number in numbers]
    names = dict(zip(numbers, whole_names(inside), strict=True))
    return [{layer: names[n][name] if name else f"stage{n}" for layer, (n, name) in place.items()} for place in places]


def whole_names(stages: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """For each stage, names in the whole model by the names in the stage. stages: names of layers, in order."""
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    out = []
    for index, names in enumerate(stages):
        mine: dict[str, set[int]] = {}
        for name in names:
            container, number, _ = _split(name)
            if number is not None:
                mine.setdefault(container, set()).add(number)
        shift = {
            container: numbers[container] - min(found) if min(found) < numbers.get(container, 0) else 0
            for container, found in mine.items()
        }
        found = {name: _named(name, shift, index, taken) for name in names}
        for container, own in mine.items():
            numbers[container] = max(own) + shift[container] + 1
        taken.update(found.values())
        out.append(found)
    return out


def _split(name: str) -> tuple[str, int | None, str]:
    """'blocks.3.mlp' is ('blocks', 3, 'mlp')."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if at is None:
        return name, None, ""
    return ".".join(parts[:at]), int(parts[at]), ".".join(parts[at + 1 :])


def _named(name: str, shift: Mapping[str, int], index: int, taken: set[str]) -> str:
    container, number, rest = _split(name)
    if number is not None:
        return ".".join(part for part in (container, str(number + shift[container]), rest) if part)
    return f"stage{index}.{name}" if name in taken else name


class StagedLayout(MergeLayout):
    """The union of the layouts of all stages, and this rank's place in it.

    local: what this rank measures, with what compares ranks at the end. holds: parts of it that this rank has.
    ranks: what all ranks of the pipeline measure. group: see MergeLayout. health: compares ranks over the union.
    """

    def __init__(
        self,
        local: RecordLayout,
        holds: frozenset[Accumulator],
        stage: Stage,
        ranks: Sequence[Measured],
        group: tuple[int, ...] = (),
    ) -> None:
        names = names_in_whole(ranks)
        self.layers = names[stage.index]
        """Names of this rank's layers in the whole model by its own."""
        kinds: dict[Accumulator, Kind] = {}
        common: set[Accumulator] = set()
        for a, kind in _in_order(ranks, names):
            sums = a.tap in REPLICATED or (a.tap, a.reduction) == DESCENT
            if a in kinds and sums and kind != "part":
                common.add(a)
            kinds.setdefault(a, kind)
        kinds |= dict.fromkeys(common, "part")
        self.device = RecordLayout.without_series(kinds)
        self.health = RankHealth(self.device)
        whole = RecordLayout.without_series((*self.device.accumulators, *self.health.sources))
        mine = [_renamed(a, names[stage.index]) for a in local.accumulators]
        starts = [whole.start(a) for a in mine]
        self._positions = np.concatenate(
            [start + np.arange(len(fields)) for start, fields in zip(starts, local.fields, strict=True)]
        )
        self._local_width = local.width
        others = common if not stage.counts else set()
        self._silent = np.array([a in others for a in whole.accumulators], dtype=bool)
        self._names = dict(zip(local.accumulators, mine, strict=True))
        held = {self._names[a] for a in holds} | (common & set(mine))
        super().__init__(whole, kinds, frozenset(held - others), group)

    def partial(
        self,
        rank: int,
        row: NDArray[np.floating] | None,
        failed: frozenset[Accumulator] = frozenset(),
        summands: Summands | None = None,
    ) -> Partial:
        """See MergeLayout. row, failed, summands: of this rank's own layout."""
        if row is None:
            return super().partial(rank, None)
        if len(row) != self._local_width:
            raise ValueError(f"a row of {len(row)} fields for a layout of {self._local_width}")
        whole = np.full(self.layout.width, np.nan)
        whole[self._positions] = row
        whole[self._starts[self._silent]] = np.nan
        named = None if summands is None else summands.named(self._names)
        return super().partial(rank, whole, frozenset(self._names[a] for a in failed if a in self._names), named)


def _in_order(ranks: Sequence[Measured], names: Sequence[Mapping[str, str]]) -> list[Entry]:
    """The entries of all ranks under the names of the whole model, the first stage first."""
    found: list[tuple[int, Entry]] = []
    for rank, mine in zip(ranks, names, strict=True):
        for a, kind in rank.entries:
            layer = a.tap not in NO_LAYER and a.site in mine
            found.append((rank.place(a.site)[0] if layer else rank.parts[0][0], (_renamed(a, mine), kind)))
    return [entry for _, entry in sorted(found, key=lambda each: each[0])]


def _renamed(a: Accumulator, names: Mapping[str, str]) -> Accumulator:
    return a if a.tap in NO_LAYER or a.site not in names else Accumulator(a.tap, names[a.site], a.reduction)
