"""The step loop: composes hooks, governor, buffer and writer, and keeps the step clock."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from stabwatch.config import Config
from stabwatch.distributed.ranks import Ranks
from stabwatch.errors import TrainingUnstableError
from stabwatch.guards.dispatcher import step_guards
from stabwatch.hooks.leaving import LEAVING
from stabwatch.hooks.presence import contexts_on
from stabwatch.runlog import Event, RecordLayout, Writer
from stabwatch.runlog.schema import GOOD_ENDS
from stabwatch.runtime.batch_shift import BatchShift
from stabwatch.runtime.call_depth import CALL_DEPTH
from stabwatch.runtime.governor import Plan
from stabwatch.runtime.host_numbers import HostPart
from stabwatch.runtime.lifetime import free_memory, keep, leave, release, weakly, when_child_ends
from stabwatch.runtime.model_changes import TOO_OFTEN
from stabwatch.runtime.model_taps import ModelTaps
from stabwatch.runtime.optimizer_check import optimizer_problems, steps_copies
from stabwatch.runtime.overdue import Overdue
from stabwatch.runtime.pace import Pace
from stabwatch.runtime.peers import restored
from stabwatch.runtime.reports import RunReports
from stabwatch.runtime.run_metadata import how_it_ended, told
from stabwatch.runtime.run_output import RunOutput
from stabwatch.runtime.script_inputs import ScriptInputs
from stabwatch.runtime.session_ranks import SessionRanks
from stabwatch.runtime.step_buffer import Extent
from stabwatch.runtime.taps import Taps

if TYPE_CHECKING:
    from stabwatch.alerts import Alert

_log = logging.getLogger("stabwatch")


class Session(SessionRanks):
    """One watched run in its training process: the step loop behind a `Watch`.

    Hooks report their events to it (see `TrainingEvents`), and it makes a record of each measured step. Nothing here
    raises, except for TrainingUnstableError, where the guard 'raise' is set.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        *,
        loss_fn: Any = None,
        run_dir: str | Path | None = None,
        config: Config | None = None,
        on_alert: Callable[[Alert], object] | None = None,
        first_step: int = 0,
        resume: str | Path | None = None,
    ) -> None:
        self.inputs: ScriptInputs | None
        """What the script says; None while no run is open."""
        self._stay: Callable[[], object]
        self._unattached(config or Config(), "", Path(run_dir) if run_dir is not None else None)
        try:
            free_memory()
            self._attach(model, optimizer, loss_fn, run_dir, on_alert, first_step, resume)
        except Exception:
            _log.exception("stabwatch: attaching failed; training goes on unwatched")
            with suppress(Exception):
                self._taps.remove()
            return
        self._blind = self._detached = False
        self.inputs = ScriptInputs(self.context, self._taps)
        keep(self, self._model)
        CALL_DEPTH.make_room()
        atexit.register(self._leave)
        self._stay = when_child_ends(weakly(self.ended))

    def _unattached(self, config: Config, run: str, run_dir: Path | None) -> None:
        self.config, self.run = config, run
        self.run_dir = Path(config.root) if run_dir is None else run_dir
        self._output: RunOutput | None = None
        self._writer: Writer | None = None
        self._overdue: Overdue | None = None
        self._taps: Taps
        self.inputs = None
        self._pid = os.getpid()
        self._leave = weakly(self._at_exit)
        self._stay = lambda: None
        self._blind = self._detached = True

    @classmethod
    def ended_elsewhere(cls, run: str, run_dir: Path) -> Session:
        """The session of a run as another process or a checkpoint has it: it watches nothing."""
        session = cls.__new__(cls)
        session._unattached(Config(), run, run_dir)
        session.copied = True
        return session

    # -- setting up ---------------------------------------------------------------------------------

    def _attach(
        self,
        model: nn.Module,
        optimizer: Any,
        loss_fn: Any,
        run_dir: str | Path | None,
        on_alert: Callable[[Alert], object] | None,
        first_step: int,
        resume: str | Path | None,
    ) -> None:
        copies = steps_copies(model, optimizer)
        self._optimizer = optimizer
        super().__init__(model, None if copies else optimizer, first_step)
        self.context.step = first_step
        self._pace = Pace(self.config, self.flags, self.context.device)
        self._attached = self._began
        self._shifts = BatchShift()
        self._problem: str | None = None
        for context in contexts_on(self._model):
            context.events.replaced()
        self._ranks = Ranks(model, self.config.reduce)
        self._taps = Taps(
            self.context, self.config, loss_fn, self._ranks, self._pace.governor,
            step_guards(self.config, self._model, self._ranks.world),
        )  # fmt: skip
        self._where = run_dir, resume
        if not self._ranks.awaited and (self._ranks.rank == 0 or self.config.reduce == "never"):
            self._open()
        self._reports = RunReports(self.context, self._host, self._event, lambda: self.run_dir)
        self._join(on_alert)
        self.isolation.run("optimizer", "always", self._check_optimizer, optimizer, copies)
        self._plan_next()

    def _check_optimizer(self, optimizer: Any, copies: bool) -> None:
        for problem in optimizer_problems(self._ranks.model, None if copies else optimizer):
            _log.warning("stabwatch: %s.", problem)
            self.context.unmeasured("note", "optimizer", problem)
            self._problem = self._problem or problem

    def _problem_is_over(self) -> None:
        """Take back what was said of the optimizer at `attach` where it holds no more: parameters were added since."""
        noted = self.context.reasons.get("note", "optimizer")
        if noted is None or noted != self._problem:
            return
        if noted not in optimizer_problems(self._ranks.model, self._optimizer):
            self.context.reasons.withdraw("note", "optimizer")
            self._problem = None

    # -- the step loop ------------------------------------------------------------------------------

    def _end_step(self) -> None:
        self._taps.now.steps.step_ends()
        self.isolation.run("clock", "always", self._close_step)
        self._dispatcher.boundary(self.step, self.step - self._offset)

    def _close_step(self) -> None:
        now = time.perf_counter()
        plan, step = self._pace.plan, self.step
        self._host.step_seconds = now - self._began
        self._began = now
        busy = self._pace.busy_seconds()
        self._clock.close()
        self._host.acted, again = self.context.actions.take(self._host.trained_on)
        self._host.validated = again / (again + self._host.acted) if again and self._checks.has_modes else 0.0
        self._host.dropped_in_evaluation = self.context.evaluations.take()
        self._host.opposed = float(self._opponents.take())
        self._prepared, self._since_step = False, 0
        self._stepped_parameters.clear()
        self.context.input.clear()
        self.isolation.run("loss", "always", self._loss.step_ends, self._repeated)
        self._repeated = False
        self.context.step = step + 1
        if self._overdue is not None:
            self._overdue.step_ended(step)
        self._record(step, plan, now)
        cost = self.isolation.take_seconds()
        self._host.next_step()
        self._work.step_begins(now)
        beside = 0.0 if self._writer is None else self._writer.seconds
        self._pace.learn(self._host.step_seconds, cost, busy, beside)
        measured = self.flags.sampled
        self._plan_next()
        if self.flags.open:
            self.isolation.run("checks", "always", self._checks.rewrites.step_ended, measured or self.flags.sampled)
        if self._problem and not self._sent & (self._sent - 1):
            self.isolation.run("optimizer", "always", self._problem_is_over)
        if what := self._changes.frozen(self._taps.now):
            self._dispatcher.announce(self.step, what, seen=True)

    def _record(self, step: int, plan: Plan, now: float) -> None:
        self._sent += 1
        always = plan.always or self.flags.loss_in_graph
        every = plan.sampled or plan.deep or (self.flags.looks and self._shared.active)
        extent = Extent.ALL if every else Extent.ALWAYS if always else Extent.BASICS
        if plan.always:
            self.context.brackets.update()
            self.isolation.run("checks", "always", self._take_kept)
        else:
            self._checks.step_unseen()
        if self.flags.sampled:
            self.isolation.run("depth", "sampled", self._taps.now.modules.step_ends)
        if self._shared.active:
            worked = self._work.seconds(now, self._ranks.coupled, self._taps.now.topology.sharded)
            if worked is not None:
                self.context.run.fill_busy(worked)
        self._shared.report_errors(self.isolation.errors.total())
        transfer = self._taps.now.buffer.send(extent)
        part = None
        if self._writer is not None:
            self._shared.receive()
            self._host.overhead, self._host.dropped = self._pace.governor.overhead, self._writer.dropped
            self._host.errors = self.isolation.errors.total() + self._shared.errors.total
            part = self._host.part(self.context.run.take_logged())
        summands = self._taps.now.parameters.spread.take()
        exchanged = self._shared.submit(step - self._offset, step, transfer, part, summands)
        if part is not None and not exchanged:
            self._write(step, transfer.part, None, part, places=transfer.places)

    def _take_kept(self) -> None:
        kept = self._checks.take_kept()
        if kept is not None:
            self.context.run.update_kept(kept)

    def _write(
        self,
        step: int,
        row: Callable[[], NDArray[np.floating]],
        health: NDArray[np.float64] | None,
        part: HostPart,
        taps: ModelTaps | None = None,
        places: NDArray[np.int64] | None = None,
    ) -> None:
        """Write a record of this rank, or of all ranks with what compares them (`health`).

        taps: those that have measured it, if they are not those of the model as it is now. places: of the fields of the
        row, if it has not all.
        """
        assert self._writer is not None
        taps = self._taps.now if taps is None else taps

        def resolve() -> tuple[RecordLayout, NDArray[np.float32]]:
            logged = {name: transfer.wait() for name, transfer in part.logged.items()}
            host = part.fields(self._shifts, self.isolation.shield)
            out = taps.assembler.assemble(row(), health, host, logged, places)
            self._reports.recorded(taps)
            self._dispatcher.record(out[0], step, out[1])
            return out

        self._writer.record(step, part.time, resolve, self._dispatcher.acts)

    def _plan_next(self) -> None:
        self._pace.plan_step(self.step - self._offset, self._host.step_seconds)
        self._taps.now.modules.follow_flags()

    # -- reporting ----------------------------------------------------------------------------------

    def _report_error(self, probe: str, message: str, trace: str, disabled: bool) -> None:
        self._event("error", self.step, probe=probe, message=message, traceback=trace, disabled=disabled)
        if hasattr(self, "_shared"):  # the attaching is over
            self._shared.report_error(self.step, probe, message, trace, disabled)
        what = "is switched off" if disabled else "failed; training continues"
        _log.warning("stabwatch: probe %s %s: %s", probe, what, message)

    def _event(self, kind: str, step: int | None, **data: Any) -> None:
        if self._writer is not None:
            self._writer.event(kind, step, **data)

    def _idle(self) -> None:
        """About once a second, in the writer's thread."""
        waited = time.perf_counter() - self._attached
        if waited > 900.0:  # a first compilation takes minutes
            self._say_silence()

    def _say_silence(self, last: bool = False) -> None:
        """Say why there is no record, once; `last`: at the end of the run, if it is another reason by then."""
        if self._sent or self._writer is None or (self._reports.said_why and not last):
            return
        noted, ever = self.context.reasons.get("forward", ""), self._loss.trained.ever
        self._reports.no_records(self._silence.reason(ever, noted, self._problem, self.context.actions.calls))
        if last and (what := self._silence.unstepped(ever)):
            self._writer.event("unstepped", self.step, what=what)

    def _say_ceased(self, waited: int) -> None:
        """Say that the program computes gradients and steps no more, once."""
        if self._sent and (what := self._silence.ceased(waited, self._host.passes, self._model.training)):
            self._event("unstepped", self.step, what=what)

    def _model_followed(self, what: str) -> None:
        self._reports.model_followed()
        self._shared.follow(self._use)
        if self._since_step <= 1:
            self._pace.governor.warm_up()
            self._plan_next()
        if what and self._sent:
            self._dispatcher.announce(self.step, what, seen=True)
        if self._changes.too_many:
            self.context.unmeasured("note", "model", TOO_OFTEN)

    def ended_by(self, error: Exception) -> None:
        """The watch cannot go on: training does, unwatched."""
        self.detach("failed", error)

    # -- what the user calls through Watch ----------------------------------------------------------

    def number_from(self, step: int) -> None:
        """The open step has this number, and those after it follow."""
        self._offset += step - self.step
        self.context.step = step

    def restore(self, timeout: float) -> int | None:
        """See Watch.restore."""
        if self._detached:
            return None
        number, restore = self._ranks.number, partial(self._dispatcher.restore, self._optimizer, timeout)
        found = restored(number, self.begun, restore, self._event)
        if found is not None:
            self.number_from(found)
        return found

    def announce(self, what: str) -> None:
        """See Watch.announce."""
        if not self._detached:
            step = self.step + self._clock.open_step_is_over()
            self.isolation.run("announce", "always", self._dispatcher.announce, step, what)

    def begin_step(self, number: int) -> None:
        """See Watch.begin_step."""
        if self._detached:
            return
        if self._clock.open_step_is_over():
            self._end_step()
        else:
            self._end_unannounced()
        self._clock.numbered = True
        self.number_from(number)

    def detach(self, reason: str = "finished", failure: BaseException | None = None) -> None:
        """See Watch.detach. reason: what the end event of the run log says. failure: what has ended the run."""
        if self._detached or os.getpid() != self._pid:
            return
        self._detached, self.inputs = True, None
        try:
            self._end(reason, failure)
        except Exception as error:
            self.isolation.errors["detach"] += 1
            _log.warning("stabwatch: the run could not be ended as it should; training continues: %r", error)

    def _end(self, reason: str, failure: BaseException | None) -> None:
        failed = failure is not None and reason not in GOOD_ENDS
        facts = {"error": told(failure)} if failure is not None and failed else {}
        if self._overdue is not None:
            self._overdue.close(failure if reason == "exception" else None)
        if self._clock.open_step_is_over():
            self.isolation.run("clock", "always", self._close_step)
        else:
            self.isolation.run("clock", "always", self._end_unannounced)
        self.flags.attached = self.flags.open = self.flags.sampled = self.flags.looks = self.flags.deep = False
        self.flags.in_forward = False
        self.isolation.run("detach", "always", self._taps.remove)
        self.isolation.run("detach", "always", CALL_DEPTH.give_back)
        atexit.unregister(self._leave)
        self._stay()
        release(self, self._model)
        self.isolation.run("snapshot", "always", self._dispatcher.close, reason)
        self._shared.close(reason)
        self._shared.receive()
        if self._output is not None:
            self.isolation.run("optimizer", "always", self._problem_is_over)
            if reason != "replaced":
                self._say_silence(last=True)
            end = Event("end", time.time(), self.step - 1, {"reason": reason, **facts})
            self._output.close(end, before=lambda: self._reports.run_ends(self._taps.now))
            with suppress(TrainingUnstableError):  # the training is over
                self._dispatcher.deliver()

    def replaced(self) -> None:
        """Another watch takes over the model: this one ends."""
        self.detach("replaced")

    def ended(self, error: BaseException | None) -> None:
        """The training has ended, by `error` where that is given."""
        self.detach(how_it_ended(error), error)

    def __del__(self) -> None:
        if not getattr(self, "_detached", True) and os.getpid() == self._pid:
            leave(self)

    def _at_exit(self) -> None:
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()  # scripts import IPython as well
        interactive = hasattr(sys, "ps1") or shell is not None  # the error of an earlier cell is no end of the run
        self.ended(LEAVING.error or (None if interactive else getattr(sys, "last_value", None)))
