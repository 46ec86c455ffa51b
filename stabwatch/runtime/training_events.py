"""What the hooks report to a session: forwards, backward passes, the loss, and steps of optimizers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.errors import TrainingUnstableError
from stabwatch.guards.dispatcher import AlertDispatcher
from stabwatch.hooks.base.alike import InputSpan, note_inputs, note_outputs, note_size
from stabwatch.hooks.base.calls import outermost
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.naming import unwrap
from stabwatch.hooks.base.random_numbers import RandomNumbers
from stabwatch.hooks.base.tensors import device_of, first_tensor
from stabwatch.hooks.cursor import in_backward
from stabwatch.hooks.nonfinite import NonFiniteTrace, Origin
from stabwatch.hooks.nonfinite_buffers import BufferCheck
from stabwatch.hooks.optimizer_step import has_closure
from stabwatch.hooks.written_loss import WrittenLoss
from stabwatch.kernels.where import tracing
from stabwatch.runlog import Writer
from stabwatch.runtime.clip_events import ClipEvents
from stabwatch.runtime.host_numbers import HostNumbers
from stabwatch.runtime.lifetime import weakly
from stabwatch.runtime.loop_checks import LoopChecks
from stabwatch.runtime.loop_order import LoopOrder
from stabwatch.runtime.loss_events import LossEvents
from stabwatch.runtime.model_changes import ModelChanges, difference
from stabwatch.runtime.opponents import Opponents
from stabwatch.runtime.optimizer_check import steps
from stabwatch.runtime.parameter_steps import ParameterSteps, note_compiled
from stabwatch.runtime.pipeline_events import PipelineEvents
from stabwatch.runtime.run_metadata import decay_per_step, learning_rate, optimizer_facts
from stabwatch.runtime.silence import Silence
from stabwatch.runtime.step_clock import StepClock
from stabwatch.runtime.taps import Taps
from stabwatch.runtime.work_clock import WorkClock

UNSTEPPED = 64
"""Forwards without a step of an optimizer, after which the parameters are looked at again."""


class TrainingEvents(ClipEvents, PipelineEvents):
    """Follows the training loop by what hooks report (see `TapEvents`), and finds out where its steps end.

    The session says what happens at the end of a step, and makes the hooks, the ranks and the guards.
    """

    _taps: Taps
    _dispatcher: AlertDispatcher
    _ranks_settle: Callable[[], None]
    """The ranks of the job are known by now, though they were not when the model was attached."""

    def __init__(self, whole: nn.Module, optimizer: Any, first_step: int = 0) -> None:
        self._model = model = unwrap(whole)
        self._offset = first_step
        device = device_of(whole, torch.device("cpu"))
        self.context = TapContext(self, weakly(self._report_error), device, (TrainingUnstableError,))
        self.flags, self.isolation = self.context.flags, self.context.isolation
        self._asked = partial(self.isolation.ask, "clock")
        """The answer of a part that must not raise an error in training; False if it does."""
        self._clock = StepClock(optimizer)
        self._loss = LossEvents(whole, self.context)
        self._written = WrittenLoss(self.context)
        self._span = InputSpan()
        self._nonfinite = NonFiniteTrace(
            self.context.trace, lambda: self._taps.now.parameters.tracked, self._found_origin,
            lambda: self._ranks.world == 1,
        )  # fmt: skip
        self._parameter_steps = ParameterSteps(
            [p for p in whole.parameters() if p.requires_grad], optimizer if steps(whole, optimizer) else None
        )
        self._changes = ModelChanges()
        self._silence = Silence(type(model).__name__, first_step)
        self._host = HostNumbers()
        self._checks = LoopChecks(model)
        self._order = LoopOrder()
        self._buffers = BufferCheck(model)
        self._opponents = Opponents()
        self._random = RandomNumbers()
        self._writer: Writer | None = None
        self._seen_optimizers: set[int] = set()
        PipelineEvents.__init__(self)
        self._prepared = False
        """The weights before a step that nothing announces were copied."""
        self._inner: Any = None
        """The innermost optimizer of the last step: the one that has the state."""
        self._repeated = False
        """The open step ends because one of its optimizers begins another one."""
        self._stepped_parameters: set[int] = set()
        """Ids of those that were stepped in the open step, where it goes on."""
        self._began = time.perf_counter()
        self._since_step = self._sent = 0
        """Forwards since the last step of an optimizer, and records of the run."""
        self._work = WorkClock(device.type == "cpu")

    def _end_step(self) -> None:
        """The step of the run is over."""
        raise NotImplementedError

    def _close_step(self) -> None:
        """The same, where no optimizer has stepped."""
        raise NotImplementedError

    def _model_followed(self, what: str) -> None:
        """The hooks were renewed; `what` has changed, '' for nothing that is watched."""
        raise NotImplementedError

    def ended_by(self, error: Exception) -> None:
        """The watch cannot go on."""
        raise NotImplementedError

    def _say_silence(self) -> None:
        """There should have been a record by now."""
        raise NotImplementedError

    def _say_ceased(self, waited: int) -> None:
        """There should have been a step by now."""
        raise NotImplementedError

    def replaced(self) -> None:
        """Another watch takes over the model."""
        raise NotImplementedError

    def _report_error(self, probe: str, message: str, trace: str, disabled: bool) -> None:
        """A probe has failed."""
        raise NotImplementedError

    @property
    def step(self) -> int:
        """Number of the open step, from 0; 0 where attaching failed."""
        return self.context.step if hasattr(self, "context") else 0

    @property
    def _watched(self) -> int:
        """How many steps have been watched."""
        return self.step - self._offset

    def _follow(self, question: Callable[..., bool], *args: Any) -> None:
        """Renew the hooks if the model consists of something else than before."""
        before = self._taps.now
        if not self._asked(question, before.structure, *args):
            return
        self._taps.follow(self._watched > 0)
        whole = self._ranks.model
        self._loss.follow(whole)
        self._parameter_steps.follow([p for p in whole.parameters() if p.requires_grad])
        self._prepared = False
        self._changes.followed(self._watched)
        self._checks.model_changed()
        self._model_followed(difference(before, self._taps.now))

    def _look_for_changes(self) -> None:
        """A forward begins: is the model as it was, and called as it was?"""
        if not self._watched and (whole := outermost(self._model)) not in (self._model, self._ranks.model):
            self._ranks.wrapped(whole)
            self._follow(self._changes.wrapped, whole)
        if self._ranks.awaited or self._ranks.formed_later:
            self._ranks_settle()
        self._follow(self._changes.in_forward, self._model, self._watched)
        self._follow(self._changes.grown, self._taps.now.modules.loops.found or self._taps.now.steps.quantised.found)

    def forward_begins(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """A training forward of the model starts: a step whose optimizers have stepped is over."""
        self._silence.forwards += 1
        self.context.thread = threading.get_ident()
        self._since_step += 1
        if not self.context.parts.followed and self._clock.forward_ends_step():  # a part may have its own optimizer
            self._end_step()
        elif not self._clock.numbered:
            self._end_unannounced()
        self._isolated(self._look_for_changes)
        if not self._sent and self._silence.long:
            self._say_silence()
        if self._checks.rewrites.versions:
            self._host.written = float(self._asked(self._checks.rewrites.written))
        if self._since_step > UNSTEPPED:
            self._loss.following = True
            self.isolation.run("clock", "always", self._say_ceased, self._since_step - 1)
        self._loss.forward_begins()
        self._work.forward_begins()
        self.isolation.run("pace", "always", self._host.forward_begins, inputs, self._began)
        self.isolation.run("token_groups", "always", self.context.token_groups.forward_begins, self._model, named)
        if self.flags.open:
            self.isolation.run("batch", "always", self._taps.batches.forward_begins, self.context.step, inputs)
        if self.flags.looks:
            self.isolation.run("batch", "sampled", note_size, self.context.run, inputs)
            self.isolation.run(
                "random", "always", self._random.forward_begins, self.context.device, self._host.forwards
            )
            self.isolation.run(
                "batch", "sampled", self._span.forward_begins, self.context.run, self.context.step, inputs
            )
        if self.flags.sampled:
            self.isolation.run("alike", "sampled", note_inputs, self.context.run, inputs, named)
            self.isolation.run("batch", "sampled", self.context.input.forward_begins, inputs, named, self._model)
        self.isolation.run("nonfinite", "always", self.context.trace.begins, inputs, self.context.device)

    def forward_ended(self, output: Any) -> None:
        """Read the loss that a model computes itself."""
        if self.flags.open:
            self.isolation.run("attention", "always", self.context.brackets.update)
        self.isolation.run("loss", "always", self._output_loss, output)
        self.isolation.run("opponents", "always", self._opponents.forward_ended, output)
        if self.flags.looks:
            self.isolation.run("random", "always", self._random.forward_ended, self.context.run, self.context.device)
            self.isolation.run("loss", "always", self._written.forward_ended, output)
        if self.flags.sampled:
            self.isolation.run("alike", "sampled", note_outputs, self.context.run, output, self._model)
        if not self._watched:
            self.isolation.run("clock", "always", self._silence.forward_ended, output)
        self._work.forward_ended()

    def _output_loss(self, output: Any) -> None:
        self._ranks.seen_in_forward()
        value = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if isinstance(value, Tensor) and value.numel() == 1:
            self.context.run.update_loss("output", value)

    def loss_module(self, module: nn.Module, args: Any, output: Any) -> None:
        """The loss module that the user named was called."""
        value = first_tensor(output)
        if value is not None and self.flags.attached and torch.is_grad_enabled():
            self.isolation.run("loss", "always", self.context.run.update_loss, "module", value.mean())

    def backward_begins(self, roots: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> None:
        """A step that was taken without the end of another one being seen is over."""
        if self._clock.in_backward and not self._clock.numbered:
            self._end_step()
        elif not self._clock.numbered:
            self._end_unannounced()
        self.isolation.run("nonfinite", "always", self._nonfinite.backward_begins, self.context.step, roots, gradients)
        self.isolation.run("loss", "always", self._loss.begins)
        if self.flags.looks:
            self.isolation.run("loss", "always", self._written.backward_begins, roots)
        self.isolation.run("opponents", "always", self._opponents.backward_begins)
        self.isolation.run("checks", "always", self._order.backward_begins, roots)
        self._work.pass_begins(roots if self._ranks.wanted and self._ranks.coupled else ())
        if self.flags.open and self._clock.inside is None:
            self.isolation.run("checks", "always", self._checks.backward_begins, self.flags.sampled)

    def backward_ended(self, roots: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> bool:
        """Add its objective to the loss of the step, if it reached parameters of this model."""
        self._work.pass_ended()
        reached = self._loss.ended(roots, gradients, self._nonfinite.objective_of(roots))
        self.isolation.run("opponents", "always", self._opponents.backward_ended, reached)
        if self._changes.pending:
            self._isolated(self._follow, self._changes.between, self._watched)
        if reached:
            self._pass_ended()
        return reached

    def backward_unclear(self, roots: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> None:
        """See `LossEvents.unclear`."""
        if self._loss.unclear(roots, gradients):
            self._pass_ended()

    def gradients_taken(
        self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None] | None, inputs: Sequence[Any]
    ) -> None:
        """See `LossEvents.taken`."""
        if not self._clock.numbered:
            self._end_unannounced()
        self.isolation.run("loss", "always", self._loss.taken, outputs, gradients, inputs)
        self._order.gradients_taken()
        if self._parameter_steps.active and self._asked(self._taps.now.parameters.owns, inputs):
            self._prepare(taken=True)
        self.isolation.run("clock", "always", self._parameter_steps.pass_ended)

    def _prepare(self, taken: bool = False) -> None:
        """The gradients of a step are there that nothing will announce."""
        if not self._prepared:
            self._prepared = True
            self._taps.now.steps.before_unannounced(self._parameter_steps.optimizer, taken)

    def _pass_ended(self) -> None:
        """The gradients may be those of the step: of a closure, and of a step that nothing announces."""
        self._host.passes += 1
        self._order.pass_ended()
        if self.flags.open:
            self._host.evaluating = self._checks.evaluating(self.flags.looks or self.flags.sampled)
            if self._clock.inside is None:
                self.isolation.run("checks", "always", self._checks.pass_ended)
        if self._clock.inside is not None:
            self._host.closures += 1
            self._taps.now.steps.gradients_ready(self._clock.inside)
        elif self._parameter_steps.active:
            self._prepare()
            self._taps.now.steps.gradients_ready(self._parameter_steps.optimizer)
        self._parameter_steps.pass_ended()

    def _note_scaled(self, optimizer: Any) -> None:
        untouched = self._host.has_clipped or not self._loss.trained.gone()
        self._host.scaled_step = self._order.before_step(optimizer, untouched)
        if len(self._seen_optimizers) <= 1:  # others may have losses of their own
            self._host.bare_terms = self._order.terms_bare(self._loss.trained.passes)

    def scaler_updated(self, scaler: Any, stepped: set[int]) -> None:
        """The gradient scaler was updated; if no optimizer stepped, it skipped this step."""
        if not scaler.is_enabled() or self._clock.others(stepped):
            return
        if not self._clock.stepped_since_update() and self._loss.trained.ever:
            self._host.skipped += 1
            if self.flags.sampled:
                self._taps.now.parameters.measure_all_gradients()
            if self._clock.numbered:
                self._clock.skipped()
            else:
                self._close_step()
        if isinstance(scaler._scale, Tensor):
            self.context.run.update_loss_scale(scaler._scale)

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Any torch optimizer is about to step; those of other models are ignored."""
        if tracing():
            note_compiled()
            return
        seen = self._changes.seen_in_forward(self._watched, self._since_step)
        if self._clock.inside is None and (self._asked(self._changes.regrouped_for, optimizer) or not seen):
            self._isolated(self._follow, self._changes.between, self._watched)
        own = self._asked(self._taps.now.parameters.tracks, optimizer)
        own = self._asked(self._silence.stepped, optimizer, own, self._host.passes > 0)
        self.isolation.run("opponents", "always", self._opponents.stepped, optimizer, own)
        if not self._sent and self._silence.long:
            self._say_silence()
        if not own:
            self._checks.other_stepped()
            return
        self._inner = optimizer
        if not self._asked(self._clock.enters, optimizer):
            return
        self._parameter_steps.announced()
        self._loss.following = False
        if self._clock.repeats(optimizer):
            self._repeated = True
            self._end_step()
        self._host.resets += self._asked(self._checks.lost_state, optimizer)
        reached = self._host.passes > 0
        self.isolation.run("checks", "always", self._checks.before_step, optimizer, self.context.run, reached)
        if self._order.scaler is not None:
            self.isolation.run("checks", "always", self._note_scaled, optimizer)
        closure = has_closure(args, kwargs)
        self.isolation.run("nonfinite", "always", self._nonfinite.before_step, self.context.step, closure)
        self._taps.now.steps.before(optimizer, closure)
        self._dispatcher.before(optimizer, self.context.step)

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """It has stepped."""
        if tracing() or not self._asked(self._clock.leaves, optimizer):
            return
        self._taps.now.steps.after(optimizer, has_closure(args, kwargs), self._inner)
        self.isolation.run("nonfinite", "always", self._nonfinite.stepped, self.context.step, self._inner or optimizer)
        self.isolation.run("nonfinite", "always", self._look_at_buffers)
        self.isolation.run("learning_rate", "always", self._note_rate, optimizer)
        self._dispatcher.after(optimizer)
        self._loss.stepped()
        self._order.stepped()
        self.isolation.run("checks", "always", self._checks.after_step, self.context.run, self._host.learning_rate)
        if self._clock.stepped(optimizer, in_backward()):
            self._end_step()
        else:
            self._stepped_parameters |= {id(p) for group in optimizer.param_groups for p in group["params"]}

    def _look_at_buffers(self) -> None:
        if not self._watched:
            self._buffers.follow()
        found = self._buffers.stepped(self.step)
        if found is not None:
            self._found_origin(found)

    def _found_origin(self, origin: Origin) -> None:
        """A value that is not finite was traced to where it was made: note it, and measure all in the next steps."""
        batches = self._taps.batches
        if not any("fingerprint" in entry for entry in batches.of(origin.step, origin.step)):
            batches.forward_begins(origin.step, self.context.trace.inputs)
        known = batches.of(origin.since, origin.step)
        self._dispatcher.tell("nonfinite", origin.step, {**origin.data(), "batches": known}, closer=True)

    def _end_unannounced(self) -> None:
        """If the parameters were stepped and no optimizer said so, the step is over."""
        if self._clock.inside is not None or not self._asked(self._parameter_steps.over, self._loss.trained):
            return
        self.context.unmeasured("note", "optimizer", self._parameter_steps.reason)
        self._taps.now.steps.after_unannounced()
        self.isolation.run("learning_rate", "always", self._note_rate, self._parameter_steps.optimizer)
        self._end_step()

    def _isolated(self, action: Callable[..., None], *args: Any) -> None:
        """Call what renews hooks. If it fails, the hooks are incomplete, and the run ends."""
        try:
            action(*args)
        except Exception as error:
            self.isolation.caught("follow", error)
            self.ended_by(error)

    def _note_rate(self, optimizer: Any) -> None:
        self._host.learning_rate = learning_rate(optimizer, self._inner)
        self._host.decay = decay_per_step(self._inner or optimizer)
        if id(optimizer) not in self._seen_optimizers:
            self._seen_optimizers.add(id(optimizer))
            if self._writer is not None and isinstance(optimizer, torch.optim.Optimizer):
                self._writer.event("optimizer", self.context.step, **optimizer_facts(optimizer))
