"""The steps of a session among those of other ranks: what this rank sends, and what rank 0 writes of all."""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import stabwatch
from stabwatch.distributed.coverage import CoverageNews
from stabwatch.distributed.directory import Directory
from stabwatch.distributed.exchange import Exchange, Merged
from stabwatch.distributed.health import SHARDED
from stabwatch.distributed.layout import MergeLayout
from stabwatch.distributed.ranks import Ranks, steps_alone
from stabwatch.distributed.stages import StagedLayout
from stabwatch.distributed.summands import Summands
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.host_transfer import HostTransfer
from stabwatch.hooks.base.parameter_views import ParameterView, WholeGradient
from stabwatch.hooks.base.probe import PROBES
from stabwatch.runlog import Accumulator, RecordLayout
from stabwatch.runtime.coverage import REPLICA
from stabwatch.runtime.host_numbers import HostPart
from stabwatch.runtime.model_taps import ModelTaps
from stabwatch.runtime.taps import Taps

_log = logging.getLogger("stabwatch")

UNMERGED = 4096
"""Steps that may wait to be merged."""
UNHEARD_STEPS, UNHEARD_SECONDS = 10, 30.0
"""After so many steps and seconds in which no other rank has taken what this one measured, that is said."""
LEAVING = 10.0
"""Most seconds that records of a new exchange wait for the last ones of the old one."""
Write = Callable[[int, Callable[[], NDArray[np.floating]], NDArray[np.float64] | None, HostPart, ModelTaps], None]
"""Writes a record: number of the step, its row, the accumulators that compare ranks, the part of the host, and what has
measured it."""


ERROR, ERRORS, ORIGIN = "error", "errors", "origin"


def beginning(model: nn.Module) -> str:
    """How often the parameters of a model were written before its first backward pass; '' after that.

    Ranks of which this is the same begin at the same step of the training. Writing to `p.data` is not seen.
    """
    parameters = list(model.parameters())
    if not parameters or any(p.grad is not None for p in parameters):
        return ""
    return f"{len(parameters)}:{sum(p._version for p in parameters)}"


FORMED_LATER = (
    "`init_process_group` came after the first step of the run: each rank writes a run of its own, with what it has "
    "measured alone. Call `attach` after it"
)


def apart_from_others(ranks: Ranks) -> str:
    """What a run says that some ranks of a job train together, and others train other models."""
    names = ", ".join(map(str, ranks.numbers))
    return (
        f"the model is trained by the ranks {names} of {ranks.of}, as its wrappers say: this run is theirs. Which rank "
        "holds up the job is not looked for, as it may be one of the others"
    )


LARGEST = (
    "ranks step on their own between averages of the weights (local SGD): gradients, weights and updates in records "
    "are the largest of any rank"
)
STEPS_ALONE = "ranks step on their own between averages of the weights (local SGD): replicas differ by design"

AVERAGED = (
    "ranks step on their own between averages of the weights (local SGD): replicas are compared in steps in which most "
    "layers are equal, as right after an average"
)

NEVER_EQUAL = (
    "the weights were equal on all ranks in no step that was looked at, and nothing keeps them equal: ranks may train "
    "different models. If they are to train one, start all of them from the same weights"
)


def left_out(names: Sequence[str]) -> str:
    """What a run says of parameters that belong to no module that `fully_shard` was called on."""
    several = f"{len(names)} parameters (the first is {names[0]}) belong" if len(names) > 1 else f"{names[0]} belongs"
    return (
        f"{several} to no module that `fully_shard` was called on: every rank has all of it, and FSDP does not average "
        "its gradient. Call it on the whole model at last, or average the gradient in the loop"
    )


@dataclass
class RemoteErrors:
    """What rank 0 knows of failures on other ranks.

    counts: errors by rank. probes: the first rank on which each probe failed.
    """

    counts: dict[int, int] = field(default_factory=dict)
    probes: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Errors on all other ranks."""
        return sum(self.counts.values())


def _names(accumulator: Accumulator) -> tuple[str, ...]:
    """Names under which the probe of an accumulator runs: its own, and that of the view that it gets."""
    probe = PROBES.find(accumulator.tap, accumulator.reduction)
    if probe is None:
        return ()
    if probe.compute is None:
        return (probe.name,)
    view = probe.compute.view
    return (probe.name, "parameters" if issubclass(view, ParameterView | WholeGradient) else view.name)


class SharedSteps:
    """Exchanges the steps of this rank with the other ranks, if there are any.

    Ranks exchange steps by how many they have watched, and not by the numbers that the user gives them.
    write: called on rank 0 with each merged step. event: writes an event of the run log (kind, step, data).
    exchange: None with one rank, with `reduce="never"`, or where the job has no store.
    """

    def __init__(
        self, ranks: Ranks, taps: Taps, context: TapContext, first: int, write: Write, event: Callable[..., None]
    ) -> None:
        self._ranks = ranks
        self._taps = taps
        self._context = context
        self._write = write
        self._event = event
        self._offsets = [(0, first)]
        self._reported = 0
        self._seen_errors: dict[str, int] = {}
        self._accumulators_of: dict[frozenset[str], frozenset[Accumulator]] = {}
        self.errors = RemoteErrors()
        self.lost: Callable[[int, bool], None] = lambda rank, lost: None
        """Set by the owner: called in the exchange's thread with a rank that is lost, or there again."""
        self.traced: Callable[[int, dict[str, Any]], None] = lambda step, data: None
        """Set by the owner: called on rank 0 with the step and the data of a `nonfinite` event of another rank."""
        self._number_of_exchange = 0
        self._said = False
        """It was said that nothing of this rank is recorded."""
        self._began = time.monotonic()
        self._left = threading.Event()
        """The exchanges before this one have handed over their last records."""
        self._left.set()
        self.exchange = self._open() if ranks.wanted else None

    def _open(self) -> Exchange | None:
        ranks, taps = self._ranks, self._taps.now
        self._number_of_exchange += 1
        try:
            exchange = Exchange(
                ranks.key("exchange"), ranks.rank, ranks.world, stabwatch.__version__, taps.health,
                partial(self._layout, taps), partial(self._merged, taps, self._left),
                partial(self._changed, self._number_of_exchange), self._failed,
                lambda: self._ranks.stage, partial(self._widened, taps), ranks.number,
                lambda rank, lost: self.lost(rank, lost),
            )  # fmt: skip
            exchange.directory.begins = beginning(ranks.model)
            return exchange
        except Exception as error:
            self._failed(error)
            return None

    def report_error(self, step: int, probe: str, message: str, trace: str, disabled: bool) -> None:
        """A probe has failed on this rank: rank 0 writes it down."""
        if self.exchange is not None and self._ranks.rank:
            data = {"probe": probe, "message": message, "traceback": trace, "disabled": disabled}
            self.exchange.reply(ERROR, [self._ranks.number, step, data])

    def report_errors(self, total: int) -> None:
        """How many errors this rank has counted so far."""
        if self.exchange is not None and self._ranks.rank and total != self._reported:
            self._reported = total
            self.exchange.reply(ERRORS, [self._ranks.number, total])

    def report_event(self, kind: str, step: int, data: dict[str, Any]) -> None:
        """An event of this rank, which writes no log: rank 0 does, where this rank alone knows where NaN was made."""
        traced = kind == "nonfinite" and data["place"] != "unknown"
        if self.exchange is not None and self._ranks.rank and traced:
            self.exchange.reply(ORIGIN, [step, {**data, "rank": self._ranks.number}])

    def receive(self) -> None:
        """On rank 0: write down what failed on others, and what they have traced."""
        if self.exchange is None or self._ranks.rank:
            return
        for step, data in self.exchange.received(ORIGIN):
            self.traced(step, data)
        for rank, total in self.exchange.received(ERRORS):
            self.errors.counts[rank] = total
        for rank, step, data in self.exchange.received(ERROR):
            self.errors.probes.setdefault(data["probe"], rank)
            data["message"] = f"on rank {rank}: {data['message']}"
            self._event("error", step, rank=rank, **data)
            _log.warning("stabwatch: probe %s failed %s", data["probe"], data["message"])

    def follow(self, use: Callable[[Exchange | None], None]) -> None:
        """The model has changed, and with it the layout: the ranks meet again, in an exchange of the new one.

        use: called with the new exchange, if there is one. What is under way in the old one is handed over before the
        first record of the new one, in a thread of its own.
        """
        old, before = self.exchange, self._left
        if old is None or old.broken:
            return
        if not old.started:
            taps = self._taps.now
            merged, widened = partial(self._merged, taps, before), partial(self._widened, taps)
            old.use(taps.health, partial(self._layout, taps), merged, widened)
            return
        self._accumulators_of.clear()
        left = self._left = threading.Event()

        def leave() -> None:
            before.wait(LEAVING)
            old.close("its model has changed, and those of other ranks have not")
            left.set()

        threading.Thread(target=leave, name="stabwatch-leave", daemon=True).start()
        self.exchange = self._open()
        use(self.exchange)

    @property
    def active(self) -> bool:
        """Whether steps are exchanged."""
        return self.exchange is not None and not self.exchange.broken

    @property
    def directory(self) -> Directory | None:
        """Where ranks find each other, if steps are exchanged."""
        return self.exchange.directory if self.exchange is not None else None

    def submit(
        self,
        watched: int,
        number: int,
        transfer: HostTransfer | None,
        part: HostPart | None,
        summands: Summands | None = None,
    ) -> bool:
        """This rank has ended a step; False if it is not exchanged.

        watched: how many steps came before it. transfer: None if it was not measured. summands: see `Exchange.submit`.
        """
        if self.exchange is None or self.exchange.broken:
            return False
        if number - watched != self._offsets[-1][1]:
            self._offsets.append((watched, number - watched))
        self._note_collectives(watched)
        self.exchange.submit(watched, transfer, part, self._failed_now(), summands)
        if not self._said and watched >= UNHEARD_STEPS and time.monotonic() - self._began > UNHEARD_SECONDS:
            self.say_unheard()
        return not self.exchange.broken

    def _note_collectives(self, watched: int) -> None:
        """How many were called in a step, until it is compared."""
        taps = self._taps.now
        checks, known = taps.steps.replicas, taps.health.collectives
        if self._ranks.rank == 0 and checks is not None and checks.collectives.in_step is not None:
            taps.health.coupled = self._ranks.coupled and not checks.alone
            known[watched] = checks.collectives.in_step
            known.pop(watched - UNMERGED, None)

    def measured(self) -> set[Accumulator]:
        """What this rank has measured so far, as far as it has been exchanged."""
        seen = set() if self.exchange is None else self.exchange.measured.copy()
        return {a for i, a in enumerate(self._taps.now.layout.accumulators) if i in seen}

    def _failed_now(self) -> frozenset[Accumulator]:
        """What this rank did not measure in this step because a probe failed or is switched off."""
        isolation = self._context.isolation
        if not isolation.errors:
            return frozenset()
        names = {name for name, count in isolation.errors.items() if count != self._seen_errors.get(name)}
        self._seen_errors = dict(isolation.errors)
        key = frozenset(names | isolation.disabled)
        if key not in self._accumulators_of:
            found = (a for a in self._taps.now.layout.accumulators if not key.isdisjoint(_names(a)))
            self._accumulators_of[key] = frozenset(found)
        return self._accumulators_of[key]

    def say_unheard(self) -> None:
        """Nobody has taken what this rank measured, to whom it was to be sent: say why, once."""
        why = None if self._said or self.exchange is None else self.exchange.unheard
        if why is not None:
            self._said = True
            self._context.unmeasured("note", "ranks", why)
            _log.warning("stabwatch: nothing of rank %d is recorded: %s.", self._ranks.number, why)

    def close(self, reason: str) -> None:
        """Leave the exchange. reason: why, for the other ranks."""
        if self.exchange is not None:
            self.exchange.close(reason)
            if reason != "replaced":
                self.say_unheard()
        self._left.wait(LEAVING)

    def _number(self, watched: int) -> int:
        """The user's number of a step."""
        offsets = self._offsets.copy()
        return watched + offsets[bisect_right(offsets, watched, key=lambda entry: entry[0]) - 1][1]

    def _layout(self, taps: ModelTaps) -> MergeLayout:
        if taps.topology.sharded:
            self._context.unmeasured(REPLICA, "", SHARDED)
        if names := taps.topology.unaveraged:
            told = left_out(names)
            self._context.unmeasured("note", "gradient", told)
            if self._ranks.rank == 0:
                _log.warning("stabwatch: %s.", told)
        taps.health.coupled = self._ranks.coupled
        taps.health.own_data = taps.topology.own_data(self._ranks.coupled)
        kinds, holds = taps.topology.kinds(taps.layout.accumulators)
        if steps_alone(self._ranks.model):
            self._context.unmeasured(REPLICA, "", STEPS_ALONE)
            self._context.unmeasured("note", "gradient", LARGEST)
            taps.health.replicas = False
        sharing = taps.topology.sharing
        group = tuple(map(self._ranks.numbers.index, sharing)) if set(sharing) <= set(self._ranks.numbers) else ()
        record = RecordLayout.without_series((*taps.layout.accumulators, *taps.health.sources))
        return MergeLayout(record, kinds, holds, group)

    # -- called in the exchange's thread ------------------------------------------------------------

    def _widened(self, taps: ModelTaps, staged: StagedLayout) -> None:
        """Records have what all stages of the pipeline measure."""
        taps.widen(staged.device.accumulators, staged.health, staged.layers)

    def _merged(self, taps: ModelTaps, left: threading.Event, merged: Merged) -> None:
        left.wait(LEAVING)
        part: HostPart = merged.extra
        health = merged.health if merged.covered > 1 else None
        if taps.health.averaged:
            self._context.unmeasured(REPLICA, "", AVERAGED)
            self._context.unmeasured("note", "gradient", LARGEST)
        elif taps.health.never_equal:
            self._context.unmeasured(REPLICA, "", NEVER_EQUAL)
        elif self._context.reasons.get(REPLICA, "") == NEVER_EQUAL:
            self._context.reasons.withdraw(REPLICA, "")
        self._write(self._number(merged.step), lambda: merged.row, health, part, taps)

    def _changed(self, exchange: int, news: CoverageNews) -> None:
        if exchange != self._number_of_exchange and news.missing:
            return  # all ranks leave an exchange when the model changes
        numbers = self._ranks.numbers
        data: dict[str, Any] = asdict(news)
        data["missing"] = [{**entry, "rank": numbers[entry["rank"]]} for entry in news.missing]
        data["since"] = since = self._number(news.since)
        self._event("ranks", since, **data)
        if news.missing:
            first = data["missing"][0]
            _log.warning(
                "stabwatch: records cover %d of %d ranks from step %d on. Rank %d: %s.",
                news.covered, news.world, since, first["rank"], first["reason"],
            )  # fmt: skip

    def _failed(self, error: Exception) -> None:
        world = self._ranks.world
        self._event("ranks", None, covered=1, world=world, missing=[], reason=f"the exchange failed: {error!r}")
        self._context.isolation.caught("exchange", error)
