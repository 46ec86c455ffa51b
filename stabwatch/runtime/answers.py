"""What a session answers about its run, while it is watched and afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stabwatch.runtime.coverage import unattached
from stabwatch.runtime.ranks import SharedSteps
from stabwatch.runtime.resume import run_state
from stabwatch.runtime.run_output import RunOutput
from stabwatch.runtime.training_events import TrainingEvents

if TYPE_CHECKING:
    from stabwatch.alerts import Alert

SETTLED = 1.0
"""Seconds that a question of the user's waits at most for the records so far to be written."""


class SessionAnswers(TrainingEvents):
    """The questions that a `Watch` asks; nothing of it changes the run."""

    run: str
    run_dir: Path
    _output: RunOutput | None
    _shared: SharedSteps
    _blind: bool
    """Attaching failed, or it is a copy."""
    copied = False
    """A copy of a session, in another process or from a checkpoint."""
    _detached: bool

    def checkpoint(self) -> dict[str, Any]:
        """See Watch.state_dict."""
        over = not self._detached and self._clock.open_step_is_over()
        return run_state(self.run, self.run_dir, self.step + over)

    @property
    def begun(self) -> bool:
        """Has a step of the training ended?"""
        return not self._blind and (self._watched > 0 or self._clock.open_step_is_over())

    @property
    def writes(self) -> bool:
        """Does this rank write the log?"""
        return self._writer is not None

    @property
    def alone(self) -> bool:
        """Is this the only rank of the job?"""
        return self._blind or self._ranks.world == 1

    def settle(self, seconds: float) -> None:
        """Wait until the records so far are written, at most so long."""
        if self._output is not None:
            self._output.settle(self._sent, seconds)

    def coverage(self) -> dict[str, Any]:
        """See Watch.coverage."""
        if self._blind:
            return unattached(self.copied)
        if not self._detached:
            self.settle(SETTLED)
        taps = self._taps.now
        self._shared.say_unheard()
        if self._writer is None:  # rank 0 assembles the records
            return taps.report(taps.recorded(self._shared.measured()))
        return taps.report(set(taps.assembler.fired))

    def url(self, timeout: float = 0.0) -> str | None:
        """Address of the live page, once the agent serves it; waits up to `timeout` seconds."""
        return self._output.url(timeout) if self._output is not None else None

    @property
    def step(self) -> int:
        """Number of the open step, from 0."""
        return 0 if self._blind else self.context.step

    @property
    def state(self) -> str:
        """'watching', 'detached', or 'failed' when attaching failed."""
        if self._blind and not self.copied:
            return "failed"
        return "detached" if self._detached else "watching"

    @property
    def active_alerts(self) -> list[Alert]:
        """Alerts that fire now, as far as the training process knows."""
        return [] if self._blind else self._dispatcher.active
