"""The watch of a trainer: begins and ends with the training, and is told of steps and metrics by a callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import stabwatch

LOSS = "trainer_loss"
"""Name under which a trainer's own `loss` is recorded: often a mean over several steps, so it must not take the place
of the loss of the step."""


KEYWORDS = ("loss_fn", "run_dir", "config", "on_alert", "resume")
"""Keywords of `attach` that are no settings of a Config."""
STOPPED = RuntimeError("the training stopped before its end")


class TrainerWatch:
    """What `stabwatch.attach(trainer)` returns. Has the methods of a `stabwatch.Watch` while the training runs.

    The model is attached when the training begins, because trainers wrap, move and compile it before. Each training
    is a run of its own.

    settings: keywords of `stabwatch.attach`. Raises ConfigError if one is unknown or out of range.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.watch: stabwatch.Watch | None = None
        """The watch of the training that runs or ran last; None before the first."""
        overrides = {name: value for name, value in settings.items() if name not in KEYWORDS}
        stabwatch.Config.for_training(settings.get("config"), **overrides)
        self.settings = dict(settings)
        self._open = False
        self._inside = False
        """A method that trains is running, and its run has begun in it."""

    def begin(self, model: Any, optimizer: Any = None, **settings: Any) -> None:
        """The training begins. A training that is still open has stopped without saying so.

        Or it is the same one, which begins again by itself: with smaller batches, where the first ones did not fit.
        settings: keywords of `stabwatch.attach`, which take the place of those given before.
        """
        again = self.watch if self._open and self._inside else None
        if self._open and again is None:
            self.end(STOPPED)
        self.watch = stabwatch.attach(model, optimizer, **{**self.settings, **settings})
        self._open = True
        if again is not None:
            again.detach()

    def step(self, number: int) -> None:
        """A step or micro-batch begins."""
        if self.watch is not None and self._open:
            self.watch.begin_step(number)

    def metrics(self, found: Mapping[str, Any]) -> None:
        """Record what the trainer logs, under the names it has there; what is no number is left out."""
        if self.watch is None or not self._open:
            return
        numbers = {LOSS if name == "loss" else name: value for name, value in found.items() if _is_number(value)}
        if numbers:
            self.watch.log(**numbers)

    def end(self, error: BaseException | None = None) -> None:
        """The training has ended, by an exception if one is given. Safe to call twice."""
        if self.watch is not None and self._open:
            self._open = False
            self.watch.__exit__(type(error) if error is not None else None, error, None)

    def detach(self) -> None:
        """End the run."""
        self.end()

    def guard(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a trainer's method that trains: the run ends when it returns or raises. What it raises is passed on."""

        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._inside = not self._open
            try:
                result = train(*args, **kwargs)
            except BaseException as error:
                self.end(error)
                raise
            finally:
                self._inside = False
            self.end(STOPPED)  # nothing happens where the trainer has said that it has finished
            return result

        return guarded

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has the settings, and watches nothing: trainers are copied and saved with their callbacks."""
        return TrainerWatch, (self.settings,)

    def __getattr__(self, name: str) -> Any:
        watch = self.__dict__.get("watch")
        if watch is None or name.startswith("__"):
            raise AttributeError(
                f"`{name}` is not there: the watch of a trainer begins when its training begins."
                if hasattr(stabwatch.Watch, name)
                else f"a watch has no attribute `{name}`"
            )
        return getattr(watch, name)

    def __repr__(self) -> str:
        return "<stabwatch.TrainerWatch, training has not begun>" if self.watch is None else repr(self.watch)


def _is_number(value: Any) -> bool:
    """A number, or a tensor or array of one element; no truth value."""
    if isinstance(value, bool | str) or value is None:
        return False
    elements = getattr(value, "numel", None)
    if callable(elements):
        return bool(elements() == 1)
    return isinstance(value, int | float) or getattr(value, "shape", None) == ()
