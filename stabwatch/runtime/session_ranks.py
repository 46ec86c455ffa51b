"""The session among the ranks of its job: which of them writes the run, and what they exchange steps with."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stabwatch.config import Config
from stabwatch.distributed.exchange import Exchange
from stabwatch.guards.dispatcher import make_dispatcher, step_guards
from stabwatch.guards.taylor import OVER_RANKS
from stabwatch.runlog import Event
from stabwatch.runtime.answers import SessionAnswers
from stabwatch.runtime.lifetime import weakly
from stabwatch.runtime.notices import say
from stabwatch.runtime.optimizer_check import zero_note
from stabwatch.runtime.overdue import Overdue
from stabwatch.runtime.pace import Pace
from stabwatch.runtime.peers import peers_for
from stabwatch.runtime.ranks import FORMED_LATER, SharedSteps, apart_from_others
from stabwatch.runtime.run_output import RunOutput

if TYPE_CHECKING:
    from stabwatch.alerts import Alert

_log = logging.getLogger("stabwatch")


class SessionRanks(SessionAnswers):
    """Finds the other ranks, when the model is attached or when their process group is made after that."""

    config: Config
    _optimizer: Any
    _where: tuple[str | Path | None, str | Path | None]
    """`run_dir` and `resume`, as the user gave them."""
    _pace: Pace
    _overdue: Overdue | None
    _event: Callable[..., None]
    _idle: Callable[[], None]
    _write: Callable[..., None]

    def _open(self) -> None:
        self._output = RunOutput(
            *self._where,
            self.config,
            self._ranks,
            self._model,
            self._taps.now.names,
            self.context.step,
            weakly(self._idle),
        )
        self.run, self.run_dir, self._writer = self._output.run, self._output.path, self._output.writer

    def _join(self, on_alert: Callable[[Alert], object] | None) -> None:
        """Exchange steps with the other ranks, if there are any; make what depends on them."""
        self._on_alert, ranks = on_alert, self._ranks
        self._shared = SharedSteps(ranks, self._taps, self.context, self._offset, self._write, self._event)
        self._taps.failed_elsewhere = self._shared.errors.probes
        exchange, together = self._shared.exchange, len(ranks.numbers) == ranks.of
        self._overdue = self._follow_ranks() if exchange is not None and together else None
        if self._overdue is not None:
            self._shared.lost = self._overdue.lost
        self._shared.traced = lambda step, data: self._dispatcher.tell("nonfinite", step, data)
        if not together:
            self.context.unmeasured("note", "ranks", apart_from_others(ranks))
        if note := zero_note(ranks.model, self._optimizer, ranks.world):
            self.context.unmeasured("note", "gradient", note)
        self._pace.use(exchange)
        peers = peers_for(self.config, ranks, self._model, exchange, self.context, self._event)
        self._dispatcher = make_dispatcher(
            self.config, self._model, ranks.world, exchange, self._writer, self.run_dir,
            partial(self._pace.governor.escalate, self.config.escalate), self._taps.batches, on_alert,
            self.isolation.run, self.isolation.shield, self.context.step, peers,
        )  # fmt: skip
        self._dispatcher.unwritten = self._shared.report_event
        if "taylor" in self.config.guards and ranks.world > 1:
            self.context.unmeasured("note", "guard", OVER_RANKS)
            if self._writer is not None:
                _log.warning("stabwatch: %s.", OVER_RANKS)

    def _follow_ranks(self) -> Overdue:
        ranks, shared = self._ranks, self._shared
        run = (self.run_dir, self._output.attempt) if self._output is not None else None
        return Overdue(
            ranks.rank, ranks.world, run, lambda: shared.directory,
            lambda: self._model.training, self._event, self.isolation.caught,
        )  # fmt: skip

    def _use(self, exchange: Exchange | None) -> None:
        self._dispatcher.use(exchange)
        self._pace.use(exchange)

    def _ranks_settle(self) -> None:
        """In the first forwards: the process group was made after `attach`, or there will be none."""
        ranks, late = self._ranks, self._ranks.formed_later
        if late and self._watched:
            ranks.formed()
            ranks.alone()
            self.context.unmeasured("note", "ranks", FORMED_LATER)
            return
        self._dispatcher.close("replaced")
        if late:
            ranks.formed()
            self._taps.use(step_guards(self.config, self._model, ranks.world))
            if ranks.rank:
                self._leave_to_first()
            elif self._output is not None:
                self.isolation.run("folder", "always", self._output.is_of, ranks)
            self._follow(self._changes.regrouped, self._model)
        else:
            ranks.awaited = False
        if self._output is None and ranks.rank == 0:
            self._open()
        self._join(self._on_alert)

    def _leave_to_first(self) -> None:
        """What this rank measures is in the run of the first one: its own ends."""
        output, self._output, self._writer = self._output, None, None
        if output is not None:
            end = Event("end", time.time(), self.step - 1, {"reason": "replaced"})
            threading.Thread(target=output.close, args=(end, lambda: None), name="stabwatch-leave", daemon=True).start()
            if self.config.verbose:
                first, mine = self._ranks.numbers[0], self._ranks.number
                say(f"what rank {mine} measures is in the run of rank {first}.")
